"""Snapshots of a trial's folder on an object store: contents of files by their hash, and one index of the files.

<trial>/index.json        the owner, and for every file its hash, its size and, if it is small, its content
<trial>/objects/<sha256>  the content of the others

The index is written last and replaced in one piece. So whenever a machine dies, the store has the trial as it was at
one evaluation or at the next. What didn't change is not written again. Only the owner named in the index may replace
it. A machine that was cut off is refused if its trial has gone on elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.storage.names import checked_entry, checked_name, refuse_way_out
from orchestrator.storage.object_store import ObjectStore
from orchestrator.storage.placeholders import content_of, fits_placeholder, write_placeholder
from trials.errors import StoreDamaged, StoreFailed
from trials.system.files import link_file

SMALL_BYTES = 64 * 1024
"""Files up to this size are in the index: most of a trial's files are, and an object each would take longer."""
_READ_BY_ALL = frozenset({".json", ".jsonl", ".txt"})
"""Endings of records and logs, which never become placeholders."""
_UNFINISHED = frozenset({"unfinished", "wandb"})
_MOST_TRIES = 3

Hashes = dict[tuple[int, int, int], str]
"""Hashes of files, by inode, size and time of the last change (ns)."""


class StaleOwnerError(Exception):
    """The trial has gone on elsewhere: this machine's copy of it no longer counts."""


@dataclass(frozen=True)
class Entry:
    """One file; `content` is in base64, or None if the file is too large for the index."""

    sha256: str
    size: int
    content: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A trial as its index describes it; `owner` None: the trial is not running."""

    owner: str | None
    files: Mapping[str, Entry]

    @property
    def objects(self) -> set[str]:
        """Hashes of the contents that are separate objects."""
        return {entry.sha256 for entry in self.files.values() if entry.content is None}


class TrialSnapshotStore:
    """Uploads and downloads one trial. For one thread at a time."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self._name = name
        self._hashes: Hashes = {}
        self._known: Snapshot | None = None

    def read(self) -> Snapshot | None:
        """Return the index as it is now; None: there is no such trial. Raises `StoreDamaged` if it is not valid."""
        try:
            text = self._store.read(self._index)
        except FileNotFoundError:
            return None
        return _parsed(text, f"{self._store.url}/{self._index}")

    def push(self, folder: Path, *, owner: str | None, becomes: str | None) -> None:
        """Make the store's trial equal to `folder`, if it is `owner`'s or new, and give it to `becomes`.

        An owner of None means that the trial is not running. Raises `StaleOwnerError` if the trial is another owner's,
        and `StoreFailed` if the folder has placeholders for contents that the store has no more.
        """
        made = Snapshot(becomes, _scan(folder, self._hashes))
        if made == self._known:
            return
        there = self._known.objects if self._known else set()
        paths = {entry.sha256: folder / name for name, entry in made.files.items() if entry.content is None}
        new = {self._object(sha): path for sha, path in paths.items() if sha not in there}
        absent = [str(path) for path in new.values() if content_of(path) is not None]
        if absent:
            raise StoreFailed(
                f"the content of {', '.join(absent)} is on no store any more. Remove that trial's folder."
            )
        self._store.upload(new)
        # As late as possible, because the owner may change while files are uploaded.
        before = self.read()
        if before is not None and before.owner != owner:
            raise StaleOwnerError(f"{self._name} on {self._store.url} belongs to {before.owner}, not to {owner}")
        self._write(made)
        self._known = made
        if before is not None:
            self._store.remove(self._object(sha) for sha in before.objects - made.objects)

    def claim(self) -> None:
        """Take the trial from its owner, and remove objects that its index doesn't list.

        Raises `FileNotFoundError` if there's no such trial.
        """
        found = self.read()
        if found is None:
            raise FileNotFoundError(self._name)
        if found.owner is not None:
            found = Snapshot(None, found.files)
            self._write(found)
        self._known = found
        used = {self._object(sha) for sha in found.objects}
        self._store.remove(set(self._store.names(f"{self._name}/objects/")) - used)

    def remove(self) -> None:
        """Remove the trial, the index first."""
        names = self._store.names(f"{self._name}/")
        self._store.remove(name for name in names if name == self._index)
        self._store.remove(names)
        self._known = None

    def pull(self, folder: Path, *, whole: bool) -> Snapshot | None:
        """Make `folder` equal to the store's trial; unless `whole`, with placeholders in place of weights.

        Returns the snapshot; None: the store doesn't have the trial, and the folder is left as it is.
        """
        for tries in range(1, _MOST_TRIES + 1):
            found = self.read()
            try:
                if found is not None:
                    self._fill(folder, found, whole=whole)
            except FileNotFoundError:  # its owner has put another evaluation there meanwhile
                if tries == _MOST_TRIES:
                    raise
                continue
            self._known = found
            return found
        raise AssertionError("the last try returns or raises")

    def _fill(self, folder: Path, found: Snapshot, *, whole: bool) -> None:
        here = _scan(folder, self._hashes)
        for name in here.keys() - found.files.keys():
            (folder / name).unlink()
        changed = {
            name: entry
            for name, entry in found.files.items()
            if here.get(name) != entry or (whole and content_of(folder / name) is not None)
        }
        wanted: dict[str, Path] = {}
        for name, entry in changed.items():
            path = folder / name
            refuse_way_out(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if entry.content is not None:
                _write_small(path, base64.b64decode(entry.content))
            elif whole or path.suffix in _READ_BY_ALL or not fits_placeholder(entry.size):
                wanted.setdefault(entry.sha256, path)
            else:
                path.unlink(missing_ok=True)
                write_placeholder(path, entry.sha256, entry.size)
        hashes = {self._object(sha): sha for sha in wanted}
        self._store.download({self._object(sha): path for sha, path in wanted.items()}, hashes)
        for name, entry in changed.items():
            first = wanted.get(entry.sha256)
            if first is not None and first != folder / name:
                link_file(first, folder / name)
        _remove_empty(folder)

    @property
    def _index(self) -> str:
        return f"{self._name}/index.json"

    def _write(self, snapshot: Snapshot) -> None:
        self._store.write(self._index, json.dumps(asdict(snapshot)).encode())

    def _object(self, sha256: str) -> str:
        return f"{self._name}/objects/{sha256}"


def _parsed(text: bytes, where: str) -> Snapshot:
    try:
        content = json.loads(text)
        owner, files = content["owner"], content["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreDamaged(f"{where} is damaged: it's no index of a trial. Remove that trial.") from error
    if owner is not None and not isinstance(owner, str):
        raise StoreDamaged(f"{where} is damaged: {str(owner)[:100]!r} is no owner. Remove that trial.")
    return Snapshot(owner, {checked_name(name, where): Entry(**checked_entry(entry, where)) for name, entry in files})


def _scan(folder: Path, hashes: Hashes) -> dict[str, Entry]:
    """Return all finished files of a folder, by their names in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not (_UNFINISHED & set(name.parts)) and not any(p.endswith(".new") for p in name.parts):
            found[name.as_posix()] = _entry(path, hashes)
    return found


def _entry(path: Path, hashes: Hashes) -> Entry:
    stat = path.stat()
    if stat.st_size <= SMALL_BYTES:
        content = path.read_bytes()
        return Entry(hashlib.sha256(content).hexdigest(), len(content), base64.b64encode(content).decode())
    key = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in hashes:
        hashes[key] = content_of(path) or _hash(path)
    return Entry(hashes[key], stat.st_size)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_small(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content)
    beside.replace(path)


def _remove_empty(folder: Path) -> None:
    """Remove folders that are empty, because the store has no files in them any more."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
