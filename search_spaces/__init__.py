"""Recipes (YAML) and the modules that read them."""
