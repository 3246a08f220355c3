"""Entries of a cache that several users may share: another user's are read, never touched, renamed or removed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trials.system.files import sync_folder


def places(root: Path, key: str, kind: str) -> tuple[Path, ...]:
    """Return the places where an entry may lie, in the order in which they are read and, where allowed, written.

    First is the key in the cache, which may be shared. Then comes the key with this user's id, for a key that is
    another user's. Last is a folder of this user's own.
    """
    return (root / key, root / f"{key}-{os.geteuid()}", own_folder() / kind / key)


def own_folder() -> Path:
    """Return this user's cache folder, which XDG_CACHE_HOME moves."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - raises where there's none
    return Path(base) / "qlora-orchestrator"


def is_ours(path: Path) -> bool:
    """Return whether a file or folder exists and belongs to this user; root has no special rights here."""
    try:
        return path.stat(follow_symlinks=False).st_uid == os.geteuid()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Return whether a folder is known to exist; one inside a folder that may not be entered is not."""
    try:
        return path.is_dir()
    except OSError:
        return False


def touch(folder: Path) -> None:
    """Mark this user's own entry as used now, so that unused entries can be told by their date."""
    if is_ours(folder):
        os.utime(folder)


def set_aside(folder: Path) -> Path | None:
    """Rename a damaged entry to `<name>.damaged`; return that, or None if it is another user's or gone already."""
    if not is_ours(folder):
        return None
    aside = folder.with_name(f"{folder.name}.damaged")
    if is_folder(aside) and not is_ours(aside):
        return None
    shutil.rmtree(aside, ignore_errors=True)
    try:
        return folder.rename(aside)
    except OSError:  # another process may have been faster
        return None


def write_entry(folder: Path, make: Callable[[Path], Any], *, for_all: bool = False) -> None:
    """Make an entry under a temporary name and rename it: whole and on disk, or not at all.

    Only this user may read it, as rows may be private; with `for_all`, the umask decides. Raises `OSError` if it can't
    be written. It is no error if another process had it there first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f"{folder.name}.new-{secrets.token_hex(6)}")
    beside.mkdir(mode=0o777 if for_all else 0o700)
    try:
        make(beside)
        if for_all:
            _open_to_all(beside)
        sync_folder(beside)
        beside.rename(folder)
    except OSError:
        if not is_folder(folder):
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _open_to_all(folder: Path) -> None:
    """Give files the access that the umask gave their folder: safetensors writes them with mode 0600."""
    allowed = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(allowed)
