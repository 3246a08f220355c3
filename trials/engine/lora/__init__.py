"""Low-rank parts of many LoRA adapters, computed in one pass."""
