"""Mirror of a run folder on an object store: the working copy of it on the search's own machine.

<run>/trials/<id>/  probe/  every trial as a snapshot (`orchestrator.storage.trial_snapshots`)
<run>/lock/                 the lease on the run folder (`orchestrator.storage.lease`)
<run>/...                   search.json, study.db, export/, report.html and the like under their own names

The store decides. What a machine has of a trial beyond the store was never reported to the controller, and is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.storage.names import refuse_way_out
from orchestrator.storage.object_store import ObjectStore
from orchestrator.storage.trial_snapshots import TrialSnapshotStore
from trials.system.files import write_json

_MARK = "store.json"
"""File in a working copy that holds the address of its run folder."""
_OWN = frozenset({_MARK, "lock", "session.json", "ray", "trials", "probe", "check"})
"""Names in a run folder that stay on this machine, or that other functions upload."""
_PASSING = re.compile(r".*\.(new|old|unproved)|study\.db-.*|\..*")
_INDEX = "/index.json"
_IS_INDEX = re.compile(rf"trials/[^/]+{_INDEX}")
_AT_ONCE = 8

Signature = tuple[tuple[str, int, int, int], ...]


class Mirror:
    """Synchronises a working copy with the store. For one thread at a time."""

    def __init__(self, url: str, path: Path) -> None:
        self.store = ObjectStore(url)
        self.path = path
        self._trials: dict[str, TrialSnapshotStore] = {}
        self._pushed: dict[Path, Signature] = {}
        """Signatures of trial folders and files when they were last uploaded or downloaded."""

    def begin(self) -> None:
        """Make the folder of the working copy, if it doesn't exist, and record its address there."""
        (self.path / "trials").mkdir(parents=True, exist_ok=True)
        write_json(self.path / _MARK, {"url": self.store.url})

    def pull_files(self) -> None:
        """Download the files that don't belong to a trial."""
        names = [name for name in self.store.names() if _is_kept(name)]
        for name in names:
            refuse_way_out(self.path, name)
        self.store.download({name: self.path / name for name in names})

    def pull_trials(self) -> None:
        """Make all trials equal to those on the store, with placeholders for weights."""
        names = self.store.names("trials/")
        known = {name.removesuffix(_INDEX) for name in names if _IS_INDEX.fullmatch(name)}
        for folder in (self.path / "trials").iterdir():
            if f"trials/{folder.name}" not in known:
                shutil.rmtree(folder)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda name: self.pull(self.path / name), sorted(known)))

    def reclaim_trials(self) -> None:
        """Take all trials back from their owners in an earlier session, and remove what those left half-done.

        Call it after `pull_trials`, with exclusive access to the run folder.
        """
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda folder: self.trial(folder).claim(), (self.path / "trials").iterdir()))
        self.trial(self.path / "probe").remove()

    def trial(self, folder: Path) -> TrialSnapshotStore:
        """Return the snapshot store of one trial's folder, or of the probe's."""
        name = folder.relative_to(self.path).as_posix()
        return self._trials.setdefault(name, TrialSnapshotStore(self.store, name))

    def pull(self, folder: Path, *, whole: bool = False) -> None:
        """Download one trial; its weights only if `whole`."""
        self.trial(folder).pull(folder, whole=whole)
        self._pushed[folder] = _signature(folder)

    def grant(self, folder: Path, owner: str) -> None:
        """Upload a trial, and give it to an owner, which writes it from now on."""
        self.trial(folder).push(folder, owner=None, becomes=owner)

    def revoke(self, folder: Path, owner: str) -> None:
        """Download a trial as its owner left it, and end that owner's right to write it."""
        self.pull(folder)
        self.trial(folder).push(folder, owner=owner, becomes=None)

    def push_trials(self, running: Iterable[Path]) -> None:
        """Upload what has changed in trials that are not running; `running` are the folders of those that are."""
        busy = {*running}
        probe = self.path / "probe"
        if "probe" in self._trials and not probe.exists() and probe not in busy:
            self._trials.pop("probe").remove()
        for folder in sorted({*(self.path / "trials").iterdir()} - busy):
            if (seen := _signature(folder)) != self._pushed.get(folder):
                self.trial(folder).push(folder, owner=None, becomes=None)
                self._pushed[folder] = seen

    def push_files(self, *tops: str) -> None:
        """Upload what has changed beside the trials; an export's manifest after the files that it lists.

        `tops`: only these files and folders of the run folder; none given: all.
        """
        seen = {path: _signature(path) for path in self._files(tops or [path.name for path in self.path.iterdir()])}
        changed = {path for path in seen if seen[path] != self._pushed.get(path)}
        last = {path for path in changed if path.name == "manifest.json"}
        for some in (changed - last, last):
            self.store.upload({path.relative_to(self.path).as_posix(): path for path in some})
        self._pushed |= {path: seen[path] for path in changed}

    def _files(self, tops: Iterable[str]) -> Iterator[Path]:
        for top in (self.path / name for name in tops if name not in _OWN):
            for path in sorted([top, *top.rglob("*")]):
                if path.is_file() and _is_kept(path.relative_to(self.path).as_posix()):
                    yield path


def address(path: Path) -> str:
    """Return the location of a run folder for users: the address that it is a working copy of, else its path."""
    try:
        return str(json.loads((path / _MARK).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError):
        return str(path)


def working_copy(url: str) -> Path:
    """Return the path of this machine's working copy of a run folder on a store."""
    url = url.rstrip("/")
    return copies() / "runs" / f"{url.rsplit('/', maxsplit=1)[-1]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def copies() -> Path:
    """Return the folder for copies of runs and trials on this machine, below XDG_CACHE_HOME."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "qlora-orchestrator"


def _is_kept(name: str) -> bool:
    """Return whether a file that isn't a trial's belongs on the store."""
    parts = name.split("/")
    return parts[0] not in _OWN and not any(map(_PASSING.fullmatch, parts))


def _signature(path: Path) -> Signature:
    """Return path, inode, size and modification time (ns) of a file, or of all files in a folder."""
    files = [file for file in sorted([path, *path.rglob("*")]) if file.is_file()]
    stats = [(str(file), file.stat()) for file in files]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
