"""Durable writes: after a crash or a power cut at any moment, a reader sees the old content or the new, never half.

The order is the same in each function: sync the content, sync its folder, rename, sync the folder of the new name.
Without the first two, a file can have its name and 0 bytes after a power cut. Without the last one, a later removal can
reach the disk before the rename does.
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
"""Errors of file systems that can't sync a folder, and of folders that may be written to but not read."""


def write_text(path: Path, text: str) -> None:
    """Write a file atomically. A link is followed; a device or a pipe is written to directly."""
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_text(text, encoding="utf-8")
        return
    beside = _beside(path)
    try:
        with beside.open("x", encoding="utf-8") as file:
            file.write(text)
        replace_file(beside, path)
    except BaseException:  # an interrupt, too, must leave no temporary file
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. Raises ValueError for NaN and infinity, which aren't JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def replace_file(new: Path, target: Path) -> None:
    """Rename a finished file over `target`, durably. Both must be in one file system."""
    _sync(new)
    new.replace(target)
    sync_directory(target.parent)


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append one line and sync it to disk. `read_json_lines` skips a line that a crash has cut."""
    with path.open("ab") as file:
        is_new = not file.tell()
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        file.write(line if is_new or _ends_with_newline(path) else b"\n" + line)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_directory(path.parent)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON objects; none if there is no file, or something else in its place."""
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
    """Make a folder and its missing parents, durably. An existing folder is left as it is."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_directory(folder.parent)


def replace_folder(new: Path, target: Path) -> None:
    """Put folder `new` in the place of `target`, a folder of this project that may not exist yet.

    After a crash in between, `recover_folder` finishes the replacement.
    """
    recover_folder(target)
    aside = set_aside_name(target)
    sync_folder(new)
    if target.exists():
        target.rename(aside)
    move(new, target)
    shutil.rmtree(aside, ignore_errors=True)


def move(path: Path, target: Path) -> None:
    """Rename a file or a folder to a free name, durably. Its content must be on disk already."""
    path.rename(target)
    sync_directory(target.parent)
    if path.parent != target.parent:
        sync_directory(path.parent)


def recover_folder(target: Path) -> None:
    """Finish a replacement that was cut: restore the old folder, or remove it where the new one is in place.

    Only for the owner of the folder: while another process replaces it, this would make that process fail.
    """
    for aside in _asides(target):
        if aside.exists() and not target.exists():
            move(aside, target)
        else:
            shutil.rmtree(aside, ignore_errors=True)


def remove_folder(target: Path) -> None:
    """Remove a folder of this project, and old content from a cut replacement, which would be read in its place."""
    for folder in (*_asides(target), target):
        shutil.rmtree(folder, ignore_errors=True)


def set_aside_name(target: Path) -> Path:
    """Return the name that `replace_folder` gives to the old folder for a moment."""
    return target.with_name(f".{target.name}.replaced")


def in_place(target: Path) -> Path:
    """Return the path at which to read a folder that `replace_folder` may be replacing.

    While `target` doesn't exist, it is the old folder's temporary name.
    """
    return target if target.exists() else next((aside for aside in _asides(target) if aside.exists()), target)


def _asides(target: Path) -> tuple[Path, Path]:
    """Return the temporary names of an old folder: the present one, and that of earlier versions."""
    return set_aside_name(target), target.with_name(target.name + ".old")


def link_folder(source: Path, target: Path) -> None:
    """Give every file of a folder a second name, or copy it where the disk has no hard links.

    Only for files that are replaced and never written to: a change would show under both names.
    """
    shutil.copytree(source, target, copy_function=link_file)


def link_file(source: str | Path, target: str | Path) -> None:
    """Give one file a second name as `link_folder` does. A file of that name is replaced atomically."""
    beside = _beside(Path(target))
    try:
        os.link(source, beside)
    except OSError:
        shutil.copy2(source, beside)
        _sync(beside)
    beside.replace(target)
    beside.unlink(missing_ok=True)  # two names of one file: POSIX then renames nothing


def sync_folder(folder: Path) -> None:
    """Sync all files of a folder to disk, before its name says that they are complete."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        elif path.is_file():
            _sync(path)
    sync_directory(folder)


def sync_directory(folder: Path) -> None:
    """Sync the names in a folder to disk, where the file system can do that."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _beside(path: Path) -> Path:
    """Return an unused name in the same folder. Its end, `.new`, keeps it out of snapshots and mirrors."""
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
