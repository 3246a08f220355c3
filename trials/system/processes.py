"""Processes of a search's session: all that start in it, Ray's daemons and workers too, are found and ended.

Session has the system's meaning: the process that opened it (setsid) and all its descendants, whatever their parent is
now. Processes on other machines of a Ray cluster don't belong to it; Ray ends those.
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

_PROC = Path("/proc")
_BOOT_ID = _PROC / "sys/kernel/random/boot_id"
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in linux/prctl.h
_GONE = {"Z", "X"}
_ENDING_SECONDS = 30.0


@dataclass(frozen=True)
class Process:
    """A living process, as the system describes it; zombies are left out."""

    pid: int
    name: str
    parent: int
    session: int


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
        return cls(socket.gethostname(), boot, session, _started(session) or 0, os.geteuid(), token)

    @property
    def is_here(self) -> bool:
        """Whether processes of it may be left on this machine, and no other session has its id by now.

        Once its first process has gone, another process of the session must have the token.
        """
        now = SessionMark.of(self.session, self.token)
        if (self.host, self.boot, self.user) != (now.host, now.boot, now.user):
            return False
        if _started(self.session) is not None:
            return self.started == now.started and _owner(self.session) == self.user
        return any(_has(process.pid, self.token) for process in processes() if process.session == self.session)


def processes() -> list[Process]:
    """Return all living processes of this machine; none where the system doesn't tell (only Linux does)."""
    found = (_read(path) for path in _PROC.glob("[0-9]*"))
    return [process for process in found if process is not None]


def end_session(session: int, seconds: float = _ENDING_SECONDS) -> list[Process]:
    """Kill this user's processes of a session, except this one, and wait until they are gone.

    Returns those that still exist after `seconds`; only the system itself can hold them up.
    """
    ends = time.monotonic() + seconds
    while left := [found for found in processes() if found.session == session and _is_other_own(found.pid)]:
        for process in left:
            _kill(process.pid)
        if time.monotonic() > ends:
            break
        time.sleep(0.05)
    return left


def children(names: Collection[str]) -> set[int]:
    """Return the ids of this process's own children with one of these names."""
    own = os.getpid()
    return {process.pid for process in processes() if process.parent == own and process.name in names}


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
    return _read(_PROC / str(pid)) is not None


def _read(path: Path) -> Process | None:
    try:
        text = (path / "stat").read_text(errors="replace", encoding="utf-8")
    except OSError:  # it ended meanwhile
        return None
    # The name stands in brackets, and may have brackets and spaces of its own.
    name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    state, parent, _, session = fields[:4]
    return None if state in _GONE else Process(int(path.name), name, int(parent), int(session))


def _started(pid: int) -> int | None:
    """Return a process's start in clock ticks since boot, also a zombie's; None if there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text[text.rindex(")") + 2 :].split()[19])


def _owner(pid: int) -> int | None:
    try:
        return (_PROC / str(pid)).stat().st_uid
    except OSError:
        return None


def _is_other_own(pid: int) -> bool:
    """Return whether it is another process than this one, and this user's."""
    return pid != os.getpid() and _owner(pid) == os.geteuid()


def _has(pid: int, token: str) -> bool:
    """Return whether a process has a word in its environment or command line.

    Other users' environments can't be read.
    """
    for file in ("environ", "cmdline"):
        with suppress(OSError):
            if token and token.encode() in (_PROC / str(pid) / file).read_bytes():
                return True
    return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
