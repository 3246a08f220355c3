"""Records of a trial on disk: writing, reading, rewinding, resuming and extending them. No torch."""
