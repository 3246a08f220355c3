"""Whole searches, clusters, storage and data preparation."""
