"""Low-rank parts of many adapters in one pass."""
