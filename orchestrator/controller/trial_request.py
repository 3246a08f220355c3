"""Request to run a trial, from the controller to the process that runs it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from orchestrator.storage.working_copy import RemoteTrial
from trials.config import TrialConfig
from trials.records.trial_dir import Origin


@dataclass(frozen=True)
class TrialRequest:
    """One trial to run. The controller fills the first part; `orchestrator.execution` adds how it is run."""

    trial_id: str
    origin: Origin
    name: str
    config: TrialConfig
    folder: Path
    """Folder of the trial in the run folder."""
    resumes: bool = False
    """Whether the trial resumes from its newest checkpoint."""
    remote: RemoteTrial | None = None
    """Location of the trial on an object store; None: the run folder is not on one."""
    fingerprint: str | None = None
    """Fingerprint of the tokenised rows; None: they are not compared."""
    stop_at: float = math.inf
    """End of training, in seconds since the Unix epoch."""
    group: str = ""
    """Name of the search in Weights & Biases."""

    segment: str = ""
    """Name of the segment that this request runs; a folder of Ray Tune in RUN/ray."""
    by_trl: bool = False
    """Whether TRL trains the trial, and not the engine."""
    worker: str = ""
    """Name of the worker (a Ray actor) that runs it."""
