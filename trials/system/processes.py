"""Processes of a search's session: all that start in it, Ray's daemons and workers too, are found and ended.

Session has the system's meaning: the process that opened it (setsid) and all its descendants, whatever their parent is
now. Processes on other machines of a Ray cluster don't belong to it; Ray ends those. psutil describes the processes.
Two things it has not: the signal at a parent's death (prctl), and the start in clock ticks, as its `create_time`
follows the system's clock. Its `children` and `parents` compare such times, and are not used for this reason.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_PROC = Path("/proc")
_BOOT_ID = _PROC / "sys/kernel/random/boot_id"
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in linux/prctl.h
_GONE = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
_ENDING_SECONDS = 30.0


@dataclass(frozen=True)
class SessionMark:
    """Identity of a session, unique also after a restart of this machine and seen from another one."""

    host: str
    boot: str
    session: int
    started: int
    """Start of its first process, in clock ticks since boot: process ids are given again to strangers."""
    user: int
    token: str = ""
    """Word that only processes of the session have in their environment or command line; empty: no such word."""

    @classmethod
    def of(cls, session: int, token: str = "") -> SessionMark:
        """Return the mark of a session on this machine, by its id. `started` is 0 if its first process is gone."""
        boot = _BOOT_ID.read_text(encoding="utf-8").strip() if _BOOT_ID.exists() else ""
        return cls(socket.gethostname(), boot, session, _started(session), os.geteuid(), token)

    @property
    def is_here(self) -> bool:
        """Whether processes of it may be left on this machine, and no other session has its id by now.

        Once its first process has gone, another process of the session must have the token.
        """
        now = SessionMark.of(self.session, self.token)
        if (self.host, self.boot, self.user) != (now.host, now.boot, now.user):
            return False
        if now.started:
            return self.started == now.started
        return any(_has(process, self.token) for process in session_processes(self.session))


def session_processes(session: int) -> list[psutil.Process]:
    """Return this user's living processes of a session on this machine; zombies are left out."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):  # it ended meanwhile
            if os.getsid(pid) == session and psutil.Process(pid).uids().effective == os.geteuid() and is_alive(pid):
                found.append(psutil.Process(pid))
    return found


def end_session(session: int, seconds: float = _ENDING_SECONDS) -> list[psutil.Process]:
    """Kill this user's processes of a session, except this one, and wait until they are gone.

    Returns those that still exist after `seconds`; only the system itself can hold them up.
    """
    ends = time.monotonic() + seconds
    while left := [process for process in session_processes(session) if process.pid != os.getpid()]:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if time.monotonic() > ends:
            break
        time.sleep(0.05)
    return left


def children(names: Collection[str]) -> set[int]:
    """Return the ids of this process's own living children with one of these names."""
    found = set()
    for pid in psutil.pids():
        with suppress(psutil.Error):  # it ended meanwhile
            process = psutil.Process(pid)
            if process.ppid() == os.getpid() and process.name() in names and is_alive(pid):
                found.add(pid)
    return found


def die_with(parent: int) -> None:
    """Have the system kill this process once its parent has ended, however that ends; at once if it has already."""
    try:
        libc: Any = ctypes.CDLL(None)
        libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    except (OSError, AttributeError):  # not Linux: this process goes on until it notices by itself
        return
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return psutil.Process(pid).status() not in _GONE
    except psutil.Error:
        return False


def _started(pid: int) -> int:
    """Return a process's start in clock ticks since boot, also a zombie's; 0 if there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # The name stands in brackets, and may have brackets and spaces of its own.
    return int(text.rpartition(")")[2].split()[19])


def _has(process: psutil.Process, token: str) -> bool:
    """Return whether a process has a word in its environment, its command line, or the path of an open file.

    Ray's workers and agents overwrite the first two with a title; their logs are open in the session's Ray folder.
    """
    try:
        return bool(token) and token in str(process.as_dict(["cmdline", "environ", "open_files"]))
    except psutil.NoSuchProcess:
        return False
