"""Services of process and machine: files, locks, clocks, ranks, GPUs, out-of-memory. Independent of trials."""
