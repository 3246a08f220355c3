"""Output of a process: terminal, logs, unexpected errors, encoding."""
