"""A trial proxy that is broken at first: it raises an error of its own while the trial is in its engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestrator.execution.reporting import REQUEST_KEY
from orchestrator.execution.trial_proxy import run_trial_proxy

BREAKS = 2


def hold_after_breaking(config: dict[str, Any]) -> None:
    """Fails so many times for trial 0001, whose marks are in BREAKS_IN; else it holds a trial as ever."""
    marks = Path(os.environ["BREAKS_IN"])
    broken = len(list(marks.iterdir()))
    if config[REQUEST_KEY].trial_id == "0001" and broken < BREAKS:
        (marks / str(broken)).touch()
        raise OSError("no more threads for who speaks")
    run_trial_proxy(config)
