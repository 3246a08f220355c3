"""Sends a search to a Ray cluster, follows it, and ends the cluster."""
