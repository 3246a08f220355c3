"""Statistics on rows: losses, intervals, paired tests, scores. No torch."""
