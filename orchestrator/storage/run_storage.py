"""Hooks by which a run folder gets to where it is kept, and back; for a folder at a path they do nothing.

The working copy of a run folder on an object store is brought up to date by them. A trial is on the store before it is
dispatched, and its worker uploads every evaluation before reporting it. The controller downloads a trial before
deciding about it. Its own changes to a trial's folder are uploaded some seconds later: if they are lost, the controller
decides again.
"""

from __future__ import annotations

import secrets
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from orchestrator.storage.lease import run_lease
from orchestrator.storage.mirror import Mirror, address
from orchestrator.storage.working_copy import RemoteTrial
from trials.config import TrackingSettings
from trials.tracking.trial_run import keep_run_id

_BETWEEN_PUSHES_SECONDS = 10.0


class RunStorage:
    """Storage of a run folder that is used where it is. Hooks of trials take the trial's folder or its id."""

    has_weights = True
    """Whether files of weights in the run folder have their content; else some are placeholders."""

    def prepare(self) -> None:
        """Prepare the run folder for a new controller, before it reads the trials."""

    def before_start(self, trial: Path, tracking: TrackingSettings) -> RemoteTrial | None:
        """Make a trial's folder available to its worker; return where, or None if it is at the same path."""

    def before_result(self, trial_id: str) -> None:
        """Bring a trial's folder up to date with the evaluation that its worker has reported."""

    def after_end(self, trial_id: str) -> None:
        """Bring a trial's folder up to date once its worker has left it."""

    def sync(self) -> None:
        """Publish changes of the run folder, at most every few seconds; to be called often."""

    def close(self) -> None:
        """Publish all changes of the run folder."""

    def upload(self, *tops: str) -> None:
        """Publish these files and folders beside the trials; none given: all."""

    def fetch_weights(self, trial: Path) -> None:
        """Replace placeholders in a trial's folder by their content."""

    def lease(self) -> AbstractContextManager[None]:
        """Keep commands on other machines out. Raises `RunFolderError` if one is in it."""
        return nullcontext()


class ObjectStorage(RunStorage):
    """Storage of a working copy, whose run folder is on an object store."""

    has_weights = False

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._granted: dict[str, tuple[Path, str]] = {}
        """Folders of running trials, each with the token that lets its worker write to the store; by trial id."""
        self._next_push = time.monotonic()

    def prepare(self) -> None:
        """Download all trials, and take them back from the workers of earlier sessions."""
        self._mirror.pull_trials()
        self._mirror.reclaim_trials()

    def before_start(self, trial: Path, tracking: TrackingSettings) -> RemoteTrial:
        """Upload search.json and the trial, which its worker alone writes from now on."""
        wandb_id, owner = keep_run_id(trial, tracking), secrets.token_hex(8)
        self._mirror.push_files("search.json")
        self._mirror.grant(trial, owner)
        self._granted[trial.name] = (trial, owner)
        name = trial.relative_to(self._mirror.path).as_posix()
        return RemoteTrial(self._mirror.store.url, name, owner, wandb_id)

    def before_result(self, trial_id: str) -> None:
        """Download the trial."""
        self._mirror.pull(self._granted[trial_id][0])

    def after_end(self, trial_id: str) -> None:
        """Download the trial, and end its worker's right to write it."""
        if trial_id in self._granted:
            self._mirror.revoke(*self._granted.pop(trial_id))

    def sync(self) -> None:
        """Upload what has changed, every `_BETWEEN_PUSHES_SECONDS`."""
        if time.monotonic() >= self._next_push:
            self.close()
            self._next_push = time.monotonic() + _BETWEEN_PUSHES_SECONDS

    def close(self) -> None:
        """Upload what has changed, except for the folders of running trials."""
        self._mirror.push_trials(trial for trial, _ in self._granted.values())
        self._mirror.push_files()

    def upload(self, *tops: str) -> None:
        """Upload what has changed of these files and folders; none given: of all."""
        self._mirror.push_files(*tops)

    def fetch_weights(self, trial: Path) -> None:
        """Download the trial with its weights."""
        self._mirror.pull(trial, whole=True)

    def lease(self) -> AbstractContextManager[None]:
        """Hold the store's lease on the run folder."""
        return run_lease(self._mirror.store, self._mirror.path)


def storage_of(run: Path) -> RunStorage:
    """Return the storage of a run folder, or of the working copy of one on an object store."""
    url = address(run)
    return RunStorage() if url == str(run) else ObjectStorage(Mirror(url, run))
