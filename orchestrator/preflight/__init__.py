"""Checks machine and cluster before a search; every result comes with its remedy."""
