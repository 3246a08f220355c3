"""Folder that a trial runs in: its own in the run folder, or a copy on this machine of what an object store has.

A copy belongs to one segment of the trial and one process, and is removed after it. What counts is on the store.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.storage.mirror import copies
from orchestrator.storage.object_store import ObjectStore
from orchestrator.storage.trial_snapshots import StaleOwnerError, TrialSnapshotStore
from orchestrator.storage.visibility import require_visible
from trials.errors import RunFolderError, StoreFailed
from trials.records.trial_dir import EvalPoint
from trials.system.locks import takes_lock
from trials.system.processes import is_alive

if TYPE_CHECKING:
    from trials.training.training_run import OnEval

_LOCK = "lock"


@dataclass(frozen=True)
class RemoteTrial:
    """Location of a trial on an object store, and its owner there."""

    url: str
    """Address of the run folder."""
    name: str
    """Name of the trial below it, such as trials/0001."""
    owner: str
    """Token that permits writing there; once the store names another owner, nothing more is written."""
    wandb_id: str | None = None
    """Id of the trial's run in Weights & Biases; None: it has none there."""


class WorkingCopy:
    """A trial's folder while it runs. `push` is called before an evaluation is reported."""

    def __init__(self, path: Path, store: TrialSnapshotStore | None = None, owner: str | None = None) -> None:
        self.path = path
        self._store = store
        self._owner = owner

    def push(self) -> None:
        """Upload the trial as it is now. Raises `ReportingError` if that fails; later calls then do nothing."""
        from trials.training.outcome import ReportingError  # loads torch, which a trial proxy doesn't need

        store, self._store = self._store, None
        if store is None:
            return
        try:
            store.push(self.path, owner=self._owner, becomes=self._owner)
        except (StoreFailed, StaleOwnerError) as error:
            raise ReportingError(str(error)) from error
        self._store = store

    def pushed_before(self, on_eval: OnEval) -> OnEval:
        """Wrap `on_eval`: upload the trial before every report, and nothing after the search has stopped it."""
        from trials.training.training_run import Decision

        def keep_and_ask(point: EvalPoint) -> Decision:
            self.push()
            decision = on_eval(point)
            if decision is Decision.STOP:
                self.detach()
            return decision

        return keep_and_ask

    def detach(self) -> None:
        """End uploads: the search has stopped the trial, and may give it to another machine."""
        self._store = None


@contextmanager
def working_copy_of(folder: Path, remote: RemoteTrial | None, *, is_kept: bool = True) -> Iterator[WorkingCopy]:
    """Yield the folder to run a trial in; on leaving, the trial's ending is uploaded too.

    If several processes train a trial, each has a copy, and only the one with `is_kept` is uploaded.

    Raises `RunFolderError` if this machine doesn't see the trial.
    """
    if remote is None:
        require_visible(folder)
        yield WorkingCopy(folder)
        return
    _remove_left_over()
    path = _copies_here() / f"{os.getpid()}-{remote.owner}" / folder.name
    store = TrialSnapshotStore(ObjectStore(remote.url), remote.name)
    try:
        path.mkdir(parents=True)
        with _in_use(path.parent):
            if store.pull(path, whole=True) is None:
                raise RunFolderError(f"{remote.url} has no trial {remote.name}. Was it removed meanwhile?")
            copy = WorkingCopy(path, store if is_kept else None, remote.owner)
            try:
                yield copy
            finally:
                if (path / "ending.json").exists():
                    copy.push()
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)


def _copies_here() -> Path:
    """Return this machine's folder of trial copies, by host name, as machines may share a home."""
    return copies() / "trials" / socket.gethostname()


@contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Hold a lock that tells other processes that this copy is in use."""
    with (folder / _LOCK).open("a", encoding="utf-8") as file:
        with suppress(OSError):  # the file system may have no locks
            takes_lock(file)
        yield


def _remove_left_over() -> None:
    """Remove copies of processes that were killed.

    A process of another container may have the same host name, and a process id that isn't known here. It holds the
    lock of its copy.
    """
    for path in _copies_here().glob("*-*"):
        number = path.name.split("-")[0]
        if not number.isdecimal() or is_alive(int(number)):
            continue
        with suppress(OSError), (path / _LOCK).open("a", encoding="utf-8") as file:
            if takes_lock(file):
                shutil.rmtree(path, ignore_errors=True)
