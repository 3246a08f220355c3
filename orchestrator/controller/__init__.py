"""Drives a search: asks the scheduler, starts, pauses, ends and records trials. No Ray."""
