"""Entries of a cache that several people may share: another's are read, and never touched, renamed or removed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trials.system.files import sync_folder


def places(root: Path, key: str, kind: str) -> tuple[Path, ...]:
    """Where an entry may lie, in the order in which they are looked at, and written to where that is allowed.

    In the cache, which may be shared, under its key; there under a name of one's own, where the key is another's; and
    in a folder that is one's own.
    """
    return (root / key, root / f"{key}-{os.geteuid()}", own_folder() / kind / key)


def own_folder() -> Path:
    """This user's cache, which XDG_CACHE_HOME moves."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - raises where there's none
    return Path(base) / "qlora-orchestrator"


def is_ours(path: Path) -> bool:
    """Whether a file or folder exists and belongs to this user; root has no say over others' here."""
    try:
        return path.stat(follow_symlinks=False).st_uid == os.geteuid()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is known to be there: one in a folder that may not be entered is not."""
    try:
        return path.is_dir()
    except OSError:
        return False


def touch(folder: Path) -> None:
    """Marks an entry of one's own as used just now, so that what nobody uses can be told by its date."""
    if is_ours(folder):
        os.utime(folder)


def set_aside(folder: Path) -> Path | None:
    """Renames a damaged entry to `<name>.damaged`; gives that, or None where it is another's or gone already."""
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
    """Makes an entry beside its place and renames it, whole and on disk, or not at all.

    It's for this user alone, as rows may be private; `for_all`: for whom the umask allows.
    Raises `OSError` where it can't be written; it's no error if another process had it there first.
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
    """Files too are for whom the umask allows, as their folder was made: safetensors writes them with mode 0600."""
    allowed = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(allowed)
