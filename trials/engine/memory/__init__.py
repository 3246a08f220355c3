"""How large micro-batches may be: planned, tried, learned from shortages."""
