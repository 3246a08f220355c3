"""Runs one rival's command against the wall clock, and reads its evaluations meanwhile."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.head_to_head.curves import CurveReader, Evaluation
from trials.system.processes import end_session

_LOOK_SECONDS = 0.25
_ENDING_SECONDS = 20.0


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

    `at_once`: it is killed at the limit, so that nothing it does later counts; else it is asked to end first. No
    process of its session is left.
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
            while process.poll() is None:
                elapsed = time.monotonic() - begun
                reader.read(elapsed)
                if elapsed >= limit_seconds:
                    was_cut_off = True
                    _ask_to_end(process, at_once=at_once)
                    break
                time.sleep(min(_LOOK_SECONDS, max(0.01, limit_seconds - elapsed)))
        finally:
            end_session(process.pid)
            code = process.wait()
    seconds = time.monotonic() - begun
    reader.read(seconds)
    return TimedRun(started, seconds, code, was_cut_off, tuple(reader.found))


def _ask_to_end(process: subprocess.Popen[bytes], *, at_once: bool) -> None:
    if at_once:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        return
