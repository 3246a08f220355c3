"""Shows a running search: terminal, log, Prometheus."""
