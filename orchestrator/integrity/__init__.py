"""Finds what of a run folder is missing or damaged, and mends it."""
