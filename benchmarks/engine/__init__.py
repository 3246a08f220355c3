"""Throughput of trials on one GPU against TRL, Unsloth and the hardware's limit."""
