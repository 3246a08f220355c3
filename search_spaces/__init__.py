"""Recipes (YAML) and the one module that reads them."""
