"""The folder that a trial runs in: its own in the run folder, or a copy on this machine of what an object store has.

A copy is of one segment of the trial and of one process, and goes with it; what counts is on the store.
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
    from trials.training.evaluation_loop import OnEval

_LOCK = "lock"


@dataclass(frozen=True)
class RemoteTrial:
    """Where a trial is on an object store, and as whose."""

    url: str
    """The run folder's address."""
    name: str
    """The trial's name below it, such as trials/0001."""
    owner: str
    """A token of whoever may write there; with another one on the store, nothing more is written."""


class WorkingCopy:
    """A trial's folder while it runs. `push` is called before an evaluation is reported."""

    def __init__(self, path: Path, store: TrialSnapshotStore | None = None, owner: str | None = None) -> None:
        self.path = path
        self._store = store
        self._owner = owner

    def push(self) -> None:
        """Puts the trial on the store as it is now. Raises `ReportingError` where that can't be done."""
        from trials.training.outcome import ReportingError  # loads torch, which a proxy does without

        store, self._store = self._store, None
        if store is None:
            return
        try:
            store.push(self.path, owner=self._owner, becomes=self._owner)
        except (StoreFailed, StaleOwnerError) as error:
            raise ReportingError(str(error)) from error
        self._store = store

    def pushed_before(self, on_eval: OnEval) -> OnEval:
        """Keeps every evaluation before it's reported, and nothing after the search has stopped the trial."""
        from trials.training.evaluation_loop import Decision

        def keep_and_ask(point: EvalPoint) -> Decision:
            self.push()
            decision = on_eval(point)
            if decision is Decision.STOP:
                self.detach()
            return decision

        return keep_and_ask

    def detach(self) -> None:
        """The search has stopped the trial, and may give it to another machine: nothing more is put on the store."""
        self._store = None


@contextmanager
def working_copy_of(folder: Path, remote: RemoteTrial | None, *, is_kept: bool = True) -> Iterator[WorkingCopy]:
    """Give the folder to run a trial in; how the trial ended is on the store too when this is left.

    Of several processes that train a trial each has a copy, and that of one is kept.

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
    """This machine's, as machines may share a home."""
    return copies() / "trials" / socket.gethostname()


@contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Holds a lock that tells others that this copy has a process."""
    with (folder / _LOCK).open("a", encoding="utf-8") as file:
        with suppress(OSError):  # of file systems that have no locks
            takes_lock(file)
        yield


def _remove_left_over() -> None:
    """Copies of processes that were killed.

    A process of another container may have the same host name, and a number that isn't known here: it holds the lock.
    """
    for path in _copies_here().glob("*-*"):
        number = path.name.split("-")[0]
        if not number.isdecimal() or is_alive(int(number)):
            continue
        with suppress(OSError), (path / _LOCK).open("a", encoding="utf-8") as file:
            if takes_lock(file):
                shutil.rmtree(path, ignore_errors=True)
