"""Conversations become tokenised, frozen splits."""
