"""What a process says: terminal, logs, unexpected errors, encoding."""
