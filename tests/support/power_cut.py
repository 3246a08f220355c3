"""Stops a piece of code at its n-th change to the disk, and makes of the disk what a kill or a power cut leaves.

Counted are openings for writing, writes, syncs, renames, links, new folders and removals below one folder, through the
functions of `os` and `io` that the project's own writers use. A write that is stopped has got half of its data out.

What isn't synced can be lost: the content of a file unless the file was synced, a change of names unless its folder
was. Which of these go is the `Loss`.
"""

from __future__ import annotations

import builtins
import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

_TOKEN = re.compile(r"\.[0-9a-f]{8}\.new")


class Loss(Enum):
    """What is lost of the changes that weren't synced."""

    NOTHING = "killed"
    CONTENT = "content"
    """Names are on disk, and the files have no content: what file systems do that journal metadata only."""
    CONTENT_AND_NAMES = "content and names"
    ALL_BUT_REMOVALS = "all but removals"
    """As if removals reached the disk before the renames that came first."""


class PowerCut(BaseException):
    """No cleaning up comes after it: every further change raises it again."""


@dataclass
class _Change:
    """One change of names, until its folder is synced."""

    parent: int
    undo: Callable[[], None]
    is_removal: bool = False


@dataclass
class Disk:
    """What is done below a folder, and what of it is on disk for sure."""

    root: Path
    stop_at: int | None = None
    """The change that doesn't happen, counted from 0; None: all happen."""
    stop_before: str | None = None
    """A pattern instead: the first change in whose line in `log` it's found doesn't happen."""
    log: list[str] = field(default_factory=list)
    _changes: list[_Change] = field(default_factory=list)
    _synced: dict[int, bytes] = field(default_factory=dict)
    """Of files that were opened for writing, by inode: the content that is on disk for sure."""
    _removed: int = 0
    was_torn: bool = False
    """Whether half a write went out before the power was cut."""

    @property
    def is_off(self) -> bool:
        """Whether the power is cut."""
        return self.stop_at is not None and len(self.log) > self.stop_at

    def note(self, what: str, *paths: Path) -> None:
        """Counts a change that is about to happen. Raises `PowerCut`."""
        if self.is_off:
            raise PowerCut
        names = [_TOKEN.sub(".*.new", path.relative_to(self.root).as_posix()) for path in paths]
        self.log.append(" ".join([what, *names]))
        if self.stop_at is None and self.stop_before and re.search(self.stop_before, self.log[-1]):
            self.stop_at = len(self.log) - 1
        if self.is_off:
            raise PowerCut

    def holds(self, path: Path) -> bool:
        """Whether a path is below the folder."""
        return path.is_relative_to(self.root)

    def changed(self, parent: Path, undo: Callable[[], None], *, is_removal: bool = False) -> None:
        """Takes in a change of names in a folder."""
        self._changes.append(_Change(parent.stat().st_ino, undo, is_removal))

    def opened(self, path: Path, content: bytes | None) -> None:
        """Takes in that a file will be written to; `content` is what it had on disk, None: it's new."""
        self._synced.setdefault(path.stat().st_ino, content or b"")

    def sync(self, path: Path) -> None:
        """Takes in that a file or a folder is on disk."""
        inode = path.stat().st_ino
        if path.is_dir():
            self._changes = [change for change in self._changes if change.parent != inode]
        else:
            self._synced[inode] = path.read_bytes()

    def keep(self, path: Path) -> Path:
        """A second name, outside the folder, of a file that is about to go."""
        kept = self.root.with_name(f"{self.root.name}-kept-{self._removed}")
        self._removed += 1
        os.link(path, kept, follow_symlinks=False)
        return kept

    def lose(self, loss: Loss) -> None:
        """Makes the folder what is found when the power is back."""
        if loss is not Loss.NOTHING:
            for path in self.root.rglob("*"):
                content = self._synced.get(path.lstat().st_ino)
                if path.is_file() and content is not None and content != path.read_bytes():
                    path.write_bytes(content)
        if loss in (Loss.CONTENT_AND_NAMES, Loss.ALL_BUT_REMOVALS):
            for change in reversed(self._changes):
                if loss is Loss.CONTENT_AND_NAMES or not change.is_removal:
                    change.undo()


class _File:
    """A file whose every write is counted, and goes out at once."""

    def __init__(self, file: Any, path: Path, disk: Disk) -> None:
        self._file, self._path, self._disk = file, path, disk

    def write(self, data: Any) -> int:
        try:
            self._disk.note("write", self._path)
        except PowerCut:
            if not self._disk.was_torn and self._disk.log[-1].startswith("write "):
                self._disk.was_torn = True
                self._file.write(data[: len(data) // 2])
                self._file.flush()
            raise
        written: int = self._file.write(data)
        self._file.flush()
        return written

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def watched(disk: Disk) -> Iterator[Disk]:
    """Counts all changes inside; ends quietly at the one where the power is cut."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, function in _patched(disk):
            patch.setattr(module, name, function)
        patch.setattr(shutil, "_USE_CP_SENDFILE", False)  # or copies would bypass every write
        with suppress(PowerCut):
            yield disk


def _patched(disk: Disk) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    yield io, "open", _opening(disk, io.open)
    yield builtins, "open", _opening(disk, io.open)
    yield os, "fsync", _syncing(disk, os.fsync)
    yield os, "mkdir", _making(disk, os.mkdir)
    yield os, "link", _linking(disk, os.link)
    for name in ("rename", "replace"):
        yield os, name, _renaming(disk, getattr(os, name))
    for name in ("unlink", "remove", "rmdir"):
        yield os, name, _removing(disk, name, getattr(os, name))


def _opening(disk: Disk, function: Callable[..., Any]) -> Callable[..., Any]:
    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        path = None if isinstance(file, int) else Path(os.fsdecode(file)).absolute()
        if path is None or not disk.holds(path) or not set(mode) & set("wax+"):
            return function(file, mode, *args, **kwargs)
        before = path.read_bytes() if path.exists() else None
        disk.note("open", path)
        found = function(file, mode, *args, **kwargs)
        disk.opened(path, before)
        if before is None:
            disk.changed(path.parent, lambda: path.unlink(missing_ok=True))
        return _File(found, path, disk)

    return opened


def _syncing(disk: Disk, function: Callable[..., Any]) -> Callable[..., Any]:
    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not disk.holds(path):
            return function(descriptor)
        disk.note("sync", path)
        disk.sync(path)  # what the disk would have is kept here, so it needn't really be synced
        return None

    return synced


def _making(disk: Disk, function: Callable[..., Any]) -> Callable[..., Any]:
    def made(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        folder = _path(path, dir_fd)
        if not disk.holds(folder) or folder.exists() or not folder.parent.is_dir():
            return function(path, mode, dir_fd=dir_fd)
        disk.note("mkdir", folder)
        function(path, mode, dir_fd=dir_fd)
        disk.changed(folder.parent, lambda: shutil.rmtree(folder, ignore_errors=True))
        return None

    return made


def _linking(disk: Disk, function: Callable[..., Any]) -> Callable[..., Any]:
    def linked(source: Any, target: Any, **kwargs: Any) -> None:
        path = _path(target, None)
        if not disk.holds(path):
            return function(source, target, **kwargs)
        disk.note("link", path)
        function(source, target, **kwargs)
        disk.changed(path.parent, lambda: path.unlink(missing_ok=True))
        return None

    return linked


def _renaming(disk: Disk, function: Callable[..., Any]) -> Callable[..., Any]:
    def renamed(source: Any, target: Any, **kwargs: Any) -> None:
        old, new = _path(source, None), _path(target, None)
        if not disk.holds(new):
            return function(source, target, **kwargs)
        disk.note("rename", old, new)
        kept = disk.keep(new) if new.is_file() else None
        function(source, target, **kwargs)

        def undo() -> None:
            if new.exists():
                function(new, old)
            if kept is not None:
                function(kept, new)

        disk.changed(new.parent, undo)
        return None

    return renamed


def _removing(disk: Disk, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def removed(path: Any, *, dir_fd: int | None = None) -> None:
        gone = _path(path, dir_fd)
        if not disk.holds(gone) or not os.path.lexists(gone):
            return function(path, dir_fd=dir_fd)
        is_folder = stat.S_ISDIR(gone.lstat().st_mode)
        if is_folder and (name != "rmdir" or any(gone.iterdir())):
            return function(path, dir_fd=dir_fd)
        disk.note("rmdir" if is_folder else "unlink", gone)
        kept = None if is_folder else disk.keep(gone)
        function(path, dir_fd=dir_fd)

        def undo() -> None:
            if not gone.parent.is_dir():
                return
            if kept is None:
                gone.mkdir(exist_ok=True)
            else:
                os.replace(kept, gone)  # noqa: PTH105

        disk.changed(gone.parent, undo, is_removal=True)
        return None

    return removed


def _path(path: Any, dir_fd: int | None) -> Path:
    given = Path(os.fsdecode(path))
    return given.absolute() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink() / given


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder whose syncs take no time, where the system has memory for files."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="power-cut-", dir=memory) as path:
        yield Path(path)


def every_cut(
    folder: Path, prepare: Callable[[Path], None], act: Callable[[Path], None], check: Callable[[Path], None]
) -> int:
    """Does `act` once whole and then cut at each of its changes, with every loss; `check` looks at what is left.

    Returns how many cuts there were.
    """
    whole = folder / "whole"
    whole.mkdir()
    prepare(whole)
    with watched(Disk(whole)) as disk:
        act(whole)
    check(whole)
    assert disk.log
    for stop_at in range(len(disk.log)):
        for loss in Loss:
            root = folder / f"{stop_at}-{loss.name}"
            root.mkdir()
            prepare(root)
            with watched(Disk(root, stop_at)) as cut:
                act(root)
            assert cut.is_off, "it did less than the first time"
            cut.lose(loss)
            try:
                check(root)
            except BaseException as error:
                error.add_note(f"cut at change {stop_at}, {disk.log[stop_at]!r}; lost: {loss.value}")
                raise
            shutil.rmtree(root)
    return len(disk.log) * len(Loss)
