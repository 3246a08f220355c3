"""Shared-base engine: many trials train at once on one resident base model."""
