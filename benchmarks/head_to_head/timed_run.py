"""Runs one rival's command against the wall clock, and reads its evaluations meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.head_to_head.curves import CurveReader, Evaluation
from trials.system.processes import end_session

_LOOK_SECONDS = 0.25
_ENDING_SECONDS = 90.0
"""For a search that is asked to end: it exports what it has, and ends its Ray."""


@dataclass(frozen=True)
class TimedRun:
    """How a command ran. `started` is in seconds since the epoch."""

    started: float
    seconds: float
    exit_code: int
    was_cut_off: bool
    evaluations: tuple[Evaluation, ...]


def run_timed(
    command: Sequence[str], environ: Mapping[str, str], folder: Path, log: Path, limit_seconds: float, *, at_once: bool
) -> TimedRun:
    """Run a command until it ends or `limit_seconds` are over; its output goes to `log`.

    `at_once`: it is killed at the limit, so that nothing it does later counts; else it is asked to end first, and is so
    if this process is interrupted. None of its processes is left.
    """
    reader = CurveReader(folder)
    started, begun = time.time(), time.monotonic()
    was_cut_off = False
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            while process.poll() is None and not was_cut_off:
                elapsed = time.monotonic() - begun
                reader.read(elapsed)
                was_cut_off = elapsed >= limit_seconds
                time.sleep(max(0.0, min(_LOOK_SECONDS, limit_seconds - elapsed)))
        finally:
            code = _end(process, at_once=at_once)
    seconds = time.monotonic() - begun
    reader.read(seconds)
    return TimedRun(started, seconds, code, was_cut_off, tuple(reader.found))


def _end(process: subprocess.Popen[bytes], *, at_once: bool) -> int:
    """End a command, if it hasn't, and all processes of it and of sessions that it has opened; return its exit code."""
    sessions = {process.pid, *_sessions_below(process.pid)}
    if process.poll() is None and not at_once:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING_SECONDS)
    for session in sessions:
        end_session(session)
    return process.wait()


def _sessions_below(pid: int) -> set[int]:
    """Return the sessions of a process's descendants: a search runs its Ray in one of its own."""
    found = set()
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(OSError):
                found.add(os.getsid(child.pid))
    return found
