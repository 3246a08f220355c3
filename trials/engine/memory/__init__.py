"""Size limits of micro-batches: planned, verified by a dry run, and corrected when memory runs out."""
