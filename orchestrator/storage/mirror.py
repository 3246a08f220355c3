"""A run folder on an object store, and the working copy of it that the search's own machine has.

<run>/trials/<id>/  probe/  every trial as `orchestrator.storage.trial_snapshots` has it
<run>/lock/                 who has the run folder (orchestrator.storage.lease)
<run>/...                   search.json, study.db, export/, report.html and the like under their own names

The store decides: what a machine has of a trial beyond it was never heard of by anybody.
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
"""In a working copy: of what."""
_OWN = frozenset({_MARK, "lock", "session.json", "ray", "trials", "probe", "check"})
"""Nobody else's affair, or looked after elsewhere."""
_PASSING = re.compile(r".*\.(new|old|unproved)|study\.db-.*|\..*")
_INDEX = "/index.json"
_IS_INDEX = re.compile(rf"trials/[^/]+{_INDEX}")
_AT_ONCE = 8

Signature = tuple[tuple[str, int, int, int], ...]


class Mirror:
    """Keeps a working copy and the store alike. One thread at a time."""

    def __init__(self, url: str, path: Path) -> None:
        self.store = ObjectStore(url)
        self.path = path
        self._trials: dict[str, TrialSnapshotStore] = {}
        self._pushed: dict[Path, Signature] = {}
        """What trial folders and files looked like when they were put on the store."""

    @classmethod
    def of(cls, path: Path) -> Mirror | None:
        """Of a run folder that is a working copy; None: it's the run folder itself."""
        url = address(path)
        return None if url == str(path) else cls(url, path)

    def begin(self) -> None:
        """Makes the working copy, if it isn't there."""
        (self.path / "trials").mkdir(parents=True, exist_ok=True)
        write_json(self.path / _MARK, {"url": self.store.url})

    def pull_files(self) -> None:
        """Takes what isn't a trial's from the store."""
        names = [name for name in self.store.names() if _is_kept(name)]
        for name in names:
            refuse_way_out(self.path, name)
        self.store.download({name: self.path / name for name in names})

    def pull_trials(self) -> None:
        """Makes all trials what the store has."""
        names = self.store.names("trials/")
        known = {name.removesuffix(_INDEX) for name in names if _IS_INDEX.fullmatch(name)}
        for folder in (self.path / "trials").iterdir():
            if f"trials/{folder.name}" not in known:
                shutil.rmtree(folder)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda name: self.pull(self.path / name), sorted(known)))

    def reclaim_trials(self) -> None:
        """Takes all trials from whoever ran them in an earlier session, and removes what such have left half-done.

        To be called once they were pulled, by who has the run folder to itself.
        """
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda folder: self.trial(folder).claim(), (self.path / "trials").iterdir()))
        self.trial(self.path / "probe").remove()

    def trial(self, folder: Path) -> TrialSnapshotStore:
        """What keeps one trial's folder, or that of the probe."""
        name = folder.relative_to(self.path).as_posix()
        return self._trials.setdefault(name, TrialSnapshotStore(self.store, name))

    def pull(self, folder: Path, *, whole: bool = False) -> None:
        """Takes one trial from the store; its weights only if it's to be whole."""
        self.trial(folder).pull(folder, whole=whole)
        self._pushed[folder] = _signature(folder)

    def grant(self, folder: Path, owner: str) -> None:
        """Puts a trial on the store, whose owner writes it from now on."""
        self.trial(folder).push(folder, owner=None, becomes=owner)

    def revoke(self, folder: Path, owner: str) -> None:
        """Takes a trial as its owner left it; nothing more of that owner's is put on the store."""
        self.pull(folder)
        self.trial(folder).push(folder, owner=owner, becomes=None)

    def push_trials(self, running: Iterable[Path]) -> None:
        """Puts on the store what has changed in trials that nobody runs."""
        busy = {*running}
        probe = self.path / "probe"
        if "probe" in self._trials and not probe.exists() and probe not in busy:
            self._trials.pop("probe").remove()
        for folder in sorted({*(self.path / "trials").iterdir()} - busy):
            if (seen := _signature(folder)) != self._pushed.get(folder):
                self.trial(folder).push(folder, owner=None, becomes=None)
                self._pushed[folder] = seen

    def push_files(self, *tops: str) -> None:
        """Puts on the store what has changed beside the trials; the manifest of an export after what it tells of.

        `tops`: only these files and folders of the run folder.
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
    """How people know a run folder: by its path, or by where it's a working copy of."""
    try:
        return str(json.loads((path / _MARK).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError):
        return str(path)


def working_copy(url: str) -> Path:
    """Where this machine keeps its copy of a run folder on a store."""
    url = url.rstrip("/")
    return copies() / "runs" / f"{url.rsplit('/', maxsplit=1)[-1]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def copies() -> Path:
    """Of runs and trials on this machine, below XDG_CACHE_HOME."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "qlora-orchestrator"


def _is_kept(name: str) -> bool:
    """Whether a file that isn't a trial's belongs on the store."""
    parts = name.split("/")
    return parts[0] not in _OWN and not any(map(_PASSING.fullmatch, parts))


def _signature(path: Path) -> Signature:
    """Of a file, or of a folder with all that is in it."""
    files = [file for file in sorted([path, *path.rglob("*")]) if file.is_file()]
    stats = [(str(file), file.stat()) for file in files]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
