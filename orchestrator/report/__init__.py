"""report.html and trials.csv from a run folder alone."""
