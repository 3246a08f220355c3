"""Recognition of errors that mean a full or read-only disk, whichever library raised them. Needs no torch."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trials.errors import DiskFull, RunFolderError

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_WORDS = {
    **{os.strerror(number): os.strerror(number) for number in _NUMBERS},
    "database or disk is full": "No space left on device",  # SQLite
    "attempt to write a readonly database": "Read-only file system",
    "unexpected pos": "torch.save couldn't write all of a file",
    "PytorchStreamWriter failed writing file": "torch.save couldn't write all of a file",
}
"""Texts that libraries put into errors of their own, each with the reason that is reported for it."""


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, means a disk that is full, over its quota or read-only.

    Libraries that write files themselves say so only in the error's text.
    """
    while error is not None:
        if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in _NUMBERS):
            return True
        if says_disk_full(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def says_disk_full(text: str) -> bool:
    """Return whether the text of an error or a traceback says that a disk is full or read-only."""
    text = text.lower()
    return any(words.lower() in text for words in _WORDS)


@contextmanager
def disk_full_in(folder: Path) -> Iterator[None]:
    """Turn an error that means a full disk into `DiskFull`, which names the error's path, else `folder`."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error) or isinstance(error, DiskFull):
            raise
        # Of a copy, the second name is the target.
        path = getattr(error, "filename2", None) or getattr(error, "filename", None) or folder
        raise DiskFull(f"can't write to {path}: {_reason(error)}") from error


def refuse_unwritable(folder: Path) -> None:
    """Raise `RunFolderError` if not even a small file can be written into a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunFolderError(
            f"can't write to {folder}: {error.strerror}. Make room or give it write access. It can be read all the "
            "same: orchestrator.report and orchestrator.export write elsewhere by --to DIR."
        ) from error


def refuse_unmakeable(folder: Path, option: str) -> None:
    """Raise `RunFolderError` if the folder that `option` names can't be made or written to. Makes nothing."""
    there = next((part for part in (folder, *folder.absolute().parents) if os.path.lexists(part)), None)
    if there is None:
        return
    if there.is_dir():
        reason = "" if os.access(there, os.W_OK | os.X_OK) else "Permission denied"
    elif there.exists():
        reason = "Not a directory"
    else:
        reason = f"a link to {there.readlink()}, where nothing is"
    if reason:
        where = "" if there == folder else f"{there}: "
        raise RunFolderError(f"can't write to {folder}: {where}{reason}. Give another {option} folder.")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = str(error).lower()
    return next((reason for words, reason in _WORDS.items() if words.lower() in said), str(error).split("\n")[0])
