"""A trial to run: what the controller asks for, and what the process that runs it has to know."""

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
    """Its folder in the run folder."""
    resumes: bool = False
    """Whether it goes on from its newest checkpoint."""
    remote: RemoteTrial | None = None
    """None: the run folder is not on an object store."""
    wandb_id: str | None = None
    """Its run in Weights & Biases, where it has one and `remote` is set."""
    fingerprint: str | None = None
    """Of the tokenised rows; None: they are not compared."""
    stop_at: float = math.inf
    """When training ends, in seconds since the epoch."""
    group: str = ""
    """The search's name in Weights & Biases."""

    segment: str = ""
    """Name of this run of the trial, from where it begins or goes on."""
    log: Path | None = None
    """File for the output of a process that runs this trial alone; None: the process has one."""
    by_trl: bool = False
    """Whether TRL trains it, and not the engine."""
    worker: str | None = None
    """Name of the Ray actor that runs it; None: a process of Ray Tune does."""
