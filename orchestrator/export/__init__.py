"""Copies the winner out, and verifies it in a fresh process."""
