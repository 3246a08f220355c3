"""Files that a command line is told to write: one that is there is replaced only if the same command wrote it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trials.errors import InputError


def refuse_to_replace(path: Path, is_ours: Callable[[str], bool], advice: str) -> None:
    """Raises `InputError` if a folder is at `path`, or a file for which `is_ours`, given its text, says no.

    Empty files, devices and pipes may be written to.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder. {advice}")
    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        known = is_ours(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = False
    if not known:
        raise InputError(f"{path} is there already, and this command hasn't written it. It's left as it is. {advice}")
