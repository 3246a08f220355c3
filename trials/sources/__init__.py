"""Rows from files or the hub, one at a time, each with its place."""
