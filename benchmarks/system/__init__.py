"""Benchmarks of whole searches, clusters, storage and data preparation."""
