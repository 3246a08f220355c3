"""Sessions of a search, one after another until it's over: what breaks one of them begins the next.

A session is a process of its own (`orchestrator.session`) with a Ray of its own. Ray takes its driver along when it
breaks, so whoever wants to outlive that can't be the driver. What a session leaves is whole on disk at any moment, and
the next one goes on from there; a session that nobody waits for any more is killed with all its processes first, so
that none of them still writes into the run folder, or holds a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from enum import IntEnum
from types import FrameType

from orchestrator.processes import SessionMark, end_session
from orchestrator.run_folder import RunFolder
from trials.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_GAVE_UP, EXIT_INTERRUPTED, SearchBroken
from trials.files import read_json_lines, write_json

MOST_IN_A_ROW = 8
"""Sessions that break without anything new on disk, over some four minutes: then the cause isn't chance."""
_LONGEST_WAIT_SECONDS = 60.0
_MARK = "session.json"
_SHOW_CURSOR = "\x1b[?25h"
_LATEST = 0.75
"""Share of the reserve that a session may use up. It stops by itself at half of it (`Conductor.must_stop`)."""
_POLL_SECONDS = 2.0


class SessionCode(IntEnum):
    """What a session's exit code says. Any other, or a signal: it broke."""

    OVER = EXIT_DONE
    REFUSED = EXIT_BAD_INPUT
    """With a message of its own; so would the next one be."""
    GAVE_UP = EXIT_GAVE_UP
    """For a reason that is no chance (`Conductor.gave_up`): trials would go on failing."""
    INTERRUPTED = EXIT_INTERRUPTED
    """By a person."""
    DISK_FULL = 74
    """Nothing more can be written, with a message of its own."""
    BROKEN = 75
    """Ray gave up."""
    REGROUPED = 76
    """The next session is to go on, on other processes."""


def persevere(
    session: Callable[[], int],
    progress: Callable[[], int],
    seconds_left: Callable[[], float],
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> SessionCode:
    """Runs a session, and again where it breaks, until one ends by itself or no time is left; says how that ended.

    `progress` grows with what is on disk. Raises `SearchBroken` if sessions break `MOST_IN_A_ROW` times without any.
    """
    in_a_row, known = 0, progress()
    while True:
        code = session()
        if code == SessionCode.REGROUPED and seconds_left() > 0:
            continue
        if code == SessionCode.REGROUPED:
            return SessionCode.OVER
        if code in set(SessionCode) - {SessionCode.BROKEN}:
            return SessionCode(code)
        if seconds_left() <= 0:
            return SessionCode.OVER
        now_known = progress()
        in_a_row = 1 if now_known > known else in_a_row + 1
        known = max(known, now_known)
        if in_a_row == MOST_IN_A_ROW:
            raise SearchBroken(
                f"the search broke {MOST_IN_A_ROW} times in a row without getting on, the last time with "
                f"{in_words(code)}. What it said of the cause stands above."
            )
        wait = min(2.0**in_a_row, _LONGEST_WAIT_SECONDS, max(0.0, seconds_left()))
        say(f"the search broke ({in_words(code)}), and goes on from what is on disk in {wait:.0f} s")
        sleep(wait)


def in_words(code: int) -> str:
    """An exit code, for people."""
    if code == SessionCode.BROKEN:
        return "Ray gave up"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def evaluations_on_disk(run: RunFolder) -> int:
    """Of all trials, and the endings: it grows whenever a search gets on."""
    lines = sum(len(read_json_lines(file)) for file in (run.path / "trials").glob("*/metrics.jsonl"))
    return lines + len(list((run.path / "trials").glob("*/ending.json")))


def persevere_with(run: RunFolder, now: Callable[[], datetime], say: Callable[[str], None]) -> SessionCode:
    """`persevere` with real sessions of the search in a run folder, by the clock of the search's command."""
    return persevere(
        lambda: run_session(run, now),
        lambda: evaluations_on_disk(run),
        lambda: run.read_search().deadline.training_seconds_left(now()),
        say,
    )


def run_session(run: RunFolder, now: Callable[[], datetime]) -> int:
    """Runs one session in a process of its own, until it ends or is too late to; returns its exit code.

    No process of it, or of one before it, is left afterwards. The first SIGINT or SIGTERM is the session's to obey: it
    stops in order; the second ends it at once.
    """
    end_last_session(run)
    ahead = (now() - datetime.now(UTC)).total_seconds()
    command = [sys.executable, "-m", "orchestrator.session", str(run.path), str(os.getpid()), str(ahead)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        with _handed_on(process) as was_asked:
            code = _wait(process, lambda: _is_too_late(run, now()))
    finally:
        end_session(process.pid)
        process.wait()
        if sys.stdout.isatty():
            print(_SHOW_CURSOR, end="", flush=True)  # a table that was being drawn has hidden it
        with suppress(OSError):  # it was made read-only meanwhile
            (run.path / _MARK).unlink()
    return SessionCode.INTERRUPTED if was_asked() and code not in set(SessionCode) else code


def mark_session(run: RunFolder) -> None:
    """Says in the run folder whose processes are at work in it: those of the session that this process has opened."""
    write_json(run.path / _MARK, asdict(SessionMark.of(os.getsid(0))))


def end_last_session(run: RunFolder) -> None:
    """Ends whatever is left of a session that nobody could clear up after, as the command was killed itself."""
    path = run.path / _MARK
    try:
        mark = SessionMark(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return
    if mark.is_here and mark.session != os.getsid(0):
        end_session(mark.session)
    path.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], is_too_late: Callable[[], bool]) -> int:
    while True:
        try:
            return process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if is_too_late():
                # It stops by itself earlier, unless it hangs; the rest of the time is the export's.
                return SessionCode.OVER


def _is_too_late(run: RunFolder, now: datetime) -> bool:
    deadline = run.read_search().deadline
    return -deadline.training_seconds_left(now) > _LATEST * deadline.reserve_seconds


@contextmanager
def _handed_on(process: subprocess.Popen[bytes]) -> Iterator[Callable[[], bool]]:
    """Hands signals on to a session, which a terminal doesn't reach; gives whether there were any."""
    asked: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
