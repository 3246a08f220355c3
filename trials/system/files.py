"""Durable writes: after a crash or a power cut at any moment, a reader sees the old or the new, never half of one.

The order is the same in each function: sync the content, sync its folder, rename, sync the folder of the new name.
Without the first two, a file can be there under its name with 0 bytes after a power cut; without the last one, a later
removal can reach the disk before the rename does.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS, errno.EACCES, errno.EPERM})
"""Errors of file systems that can't sync a folder, and of folders that may be written to and not be read."""


def write_text(path: Path, text: str) -> None:
    """Writes a file in one piece. A link is followed; a device or a pipe is written to as it is."""
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_text(text, encoding="utf-8")
        return
    beside = _beside(path)
    try:
        with beside.open("x", encoding="utf-8") as file:
            file.write(text)
        replace_file(beside, path)
    except BaseException:  # an interrupt too leaves nothing beside it
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; NaN and infinity are refused (ValueError), they aren't JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def replace_file(new: Path, target: Path) -> None:
    """Renames a finished file over `target`, durably. Both are in one file system."""
    _sync(new)
    new.replace(target)
    sync_directory(target.parent)


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Appends one line and makes sure that it's on disk. A line cut by a crash is skipped by `read_json_lines`."""
    with path.open("ab") as file:
        is_new = not file.tell()
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        file.write(line if is_new or _ends_with_newline(path) else b"\n" + line)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_directory(path.parent)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON objects; none if there is no file, or something else in its place."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, durably; one that is there already is left as it is."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_directory(folder.parent)


def replace_folder(new: Path, target: Path) -> None:
    """Puts folder `new` in the place of `target`, which is a folder that this project made, or isn't there.

    After a crash in between, `recover_folder` finishes the job.
    """
    recover_folder(target)
    aside = set_aside_name(target)
    sync_folder(new)
    if target.exists():
        target.rename(aside)
    move(new, target)
    shutil.rmtree(aside, ignore_errors=True)


def move(path: Path, target: Path) -> None:
    """Renames a file or a folder to a name that is free, durably. Its content is to be on disk already."""
    path.rename(target)
    sync_directory(target.parent)
    if path.parent != target.parent:
        sync_directory(path.parent)


def recover_folder(target: Path) -> None:
    """Ends a replacement that was cut: the old folder goes back to its place, or goes where the new one is there.

    Only for the owner of the folder: while another process replaces it, this would make that process fail.
    """
    for aside in _asides(target):
        if aside.exists() and not target.exists():
            move(aside, target)
        else:
            shutil.rmtree(aside, ignore_errors=True)


def remove_folder(target: Path) -> None:
    """Removes a folder of this project, and what a cut replacement has left of it, which would be read in its place."""
    for folder in (*_asides(target), target):
        shutil.rmtree(folder, ignore_errors=True)


def set_aside_name(target: Path) -> Path:
    """The name that `replace_folder` gives to the old folder for a moment."""
    return target.with_name(f".{target.name}.replaced")


def in_place(target: Path) -> Path:
    """Where to read a folder that `replace_folder` may be replacing: its old name while it has no other."""
    return target if target.exists() else next((aside for aside in _asides(target) if aside.exists()), target)


def _asides(target: Path) -> tuple[Path, Path]:
    """The second name is that of earlier versions."""
    return set_aside_name(target), target.with_name(target.name + ".old")


def link_folder(source: Path, target: Path) -> None:
    """A second name for every file of a folder, or a copy where the disk has no hard links.

    For files that are replaced and never written to: a change would show under both names.
    """
    shutil.copytree(source, target, copy_function=link_file)


def link_file(source: str | Path, target: str | Path) -> None:
    """The same for one file; one that is there already under the second name is replaced in one piece."""
    beside = _beside(Path(target))
    try:
        os.link(source, beside)
    except OSError:
        shutil.copy2(source, beside)
        _sync(beside)
    beside.replace(target)
    beside.unlink(missing_ok=True)  # two names of one file: POSIX then renames nothing


def sync_folder(folder: Path) -> None:
    """Makes sure that all files of a folder are on disk, before its name says that they are."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        elif path.is_file():
            _sync(path)
    sync_directory(folder)


def sync_directory(folder: Path) -> None:
    """Makes sure that the names in a folder are on disk, where the file system can do that."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _beside(path: Path) -> Path:
    """A name in the same folder that nobody else has; it ends as what is no part of a snapshot or a mirror ends."""
    return path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.new")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
