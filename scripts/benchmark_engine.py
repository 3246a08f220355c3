"""Our engine's entries of `scripts.benchmark_trials`."""

from __future__ import annotations

from scripts.benchmark_jobs import Job, Measured


def engine_entry(job: Job) -> Measured:
    """Our engine with `job.engine.trials` trials on rows of `job.rows`."""
    raise NotImplementedError("the engine has no entry here yet")
