"""Threads of the engine: the step loop with its micro-batcher, and one thread per trial."""
