"""Runs trials through Ray: Tune adapters, workers, worker groups, the channel between them."""
