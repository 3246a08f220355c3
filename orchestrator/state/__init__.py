"""State of a search, on disk and in time. Readable on a laptop: no Ray, no torch."""
