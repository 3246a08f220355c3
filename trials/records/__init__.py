"""What a trial leaves on disk, and reading, rewinding, resuming it. No torch."""
