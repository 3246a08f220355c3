"""One command at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from trials.errors import RunFolderError

_NAME = "lock"


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Keeps others from working in `folder`; the system gives it free when this process ends, however it does.

    Raises `RunFolderError` while another holds it, on this machine or, where the file system passes locks on, another;
    and where something that is no file has its name, or it can't be written.
    """
    with _opened(folder / _NAME) as file:
        if _is_anothers(file):
            file.seek(0)
            proxy = file.read().strip() or "another command"
            raise RunFolderError(f"{folder} is in use by {proxy}. Wait until that has ended, or end it.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def takes_lock(file: TextIO) -> bool:
    """Whether the file is this process's from now on; the system forgets it with the process.

    Raises `OSError` where the file system has no locks, such as on some network shares.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(path: Path) -> TextIO:
    try:
        if path.exists() and not path.is_file():
            raise RunFolderError(f"{path} is no file, so nobody can tell who is at work there. Remove it.")
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"can't write {path}: {error.strerror}. Allow it, or remove it.") from error


def _is_anothers(file: TextIO) -> bool:
    try:
        return not takes_lock(file)
    except OSError:
        return False
