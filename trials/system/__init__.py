"""What process and machine give: files, locks, clocks, ranks, GPUs, out-of-memory. Knows no trial."""
