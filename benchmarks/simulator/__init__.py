"""The real controller on a simulated clock: `python -m benchmarks.simulator regret | deadlines | scale`."""
