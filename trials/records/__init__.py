"""Records of a trial on disk: writing, reading, rewinding and resuming them. No torch."""
