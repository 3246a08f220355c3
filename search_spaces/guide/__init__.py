"""Compatibility with the CoT-NLI guide's Python config files."""
