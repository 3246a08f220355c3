"""Guard of files that a command line is told to write: only the same command's files are replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trials.errors import InputError


def refuse_to_replace(path: Path, is_ours: Callable[[str], bool], advice: str) -> None:
    """Raise `InputError` if `path` is a folder, or a file whose text `is_ours` rejects.

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
