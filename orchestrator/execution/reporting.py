"""Reporting from a trial's Ray Tune process: to Tune, and to Weights & Biases."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.storage.mirror import copies
from trials.console.troubles import TROUBLES, only_reporting
from trials.records.trial_dir import EvalPoint
from trials.tracking.trial_run import FINISH_SECONDS, Log, wandb_run

TROUBLES_KEY = "troubles"
REQUEST_KEY = "request"
"""Key of the `TrialRequest` in Ray Tune's configuration of a trial."""
_LATE_FINISH_SECONDS = 5.0
"""Seconds for W&B to finish a run after the end of training: the rest of the time is for the export."""


def report_of(point: EvalPoint, troubles: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return an evaluation as Tune's report, with failures of reporting in this process and those in `troubles`."""
    found = {**TROUBLES.pop_unreported(), **(troubles or {})}
    return {**asdict(point), TROUBLES_KEY: list(found.items())}  # a list, because Tune flattens dictionaries


@contextmanager
def tracked(request: TrialRequest) -> Iterator[Log]:
    """Open `trials.tracking.trial_run.wandb_run` for a request; it never fails the trial or waits for W&B.

    For a trial on an object store it uses a folder on this machine that outlives the trial's working copy.
    """
    folder, config = request.folder, request.config
    if request.remote is not None:
        folder = copies() / "wandb" / request.group / request.trial_id
        with only_reporting("W&B"):
            folder.mkdir(parents=True, exist_ok=True)
        tracking = config.tracking.model_copy(update={"run_id": config.tracking.run_id or request.remote.wandb_id})
        config = config.model_copy(update={"tracking": tracking})

    def finish_seconds() -> float:
        return FINISH_SECONDS if time.time() < request.stop_at else _LATE_FINISH_SECONDS

    with wandb_run(folder, config, request.group, finish_seconds) as log:
        yield log
