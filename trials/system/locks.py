"""File lock that lets one command at a time work in a folder.

filelock would need as many lines. It creates the file that it locks, which must not happen in a stranger's folder, and
raises the same error where a file system has no locks and where the file can't be written.
"""

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
    """Keep other commands from working in `folder`; the system releases the lock when this process ends.

    Raises `RunFolderError` while another process holds the lock. It may be on another machine, if the file system
    passes locks on. Also raises it if the lock's name belongs to something that is no file, or can't be written.
    """
    with _opened(folder / _NAME) as file:
        if _is_anothers(file):
            file.seek(0)
            owner = file.read().strip() or "another command"
            raise RunFolderError(f"{folder} is in use by {owner}. Wait until that has ended, or end it.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def takes_lock(file: TextIO) -> bool:
    """Try to lock an open file; return whether that worked. The lock ends with the process at the latest.

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
