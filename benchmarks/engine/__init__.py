"""Throughput of trials on one GPU against TRL, Unsloth and what the card could do at most."""
