"""Threads: the step loop, the micro-batcher, one thread per trial."""
