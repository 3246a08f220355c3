"""Ratios measured side by side in one run: of the engine, of whole systems, and of searches on a simulated clock."""
