"""Sessions of a search, one after another until it's over: what breaks one of them begins the next.

A session is a process of its own (`orchestrator.supervisor.session`) with a Ray of its own. Ray takes its driver along
when it breaks, so whoever wants to outlive that can't be the driver. What a session leaves is whole on disk at any
moment, and the next one goes on from there; a session that nobody waits for any more is killed with all its processes
first, so that none of them still writes into the run folder, or holds a GPU.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum

from orchestrator.monitoring.search_log import last_error, search_log, size
from orchestrator.state.run_dir import RunDir
from orchestrator.supervisor.interruption import Interruption, held_back
from orchestrator.supervisor.session_mark import clear_session, end_last_session
from trials.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_GAVE_UP, EXIT_INTERRUPTED, SearchBroken
from trials.system.files import read_json_lines
from trials.system.processes import end_session

MOST_IN_A_ROW = 8
"""Sessions that break without anything new on disk, over some four minutes: then the cause isn't chance."""
_LONGEST_WAIT_SECONDS = 60.0
_SHOW_CURSOR = "\x1b[?25h"
_LATEST = 0.75
"""Share of the reserve that a session may use up. It stops by itself at half of it (`SearchController.should_stop`)."""
_POLL_SECONDS = 2.0
_PATIENCE = 3
"""So many signals end a session that obeys none of them."""


class SessionExit(IntEnum):
    """What a session's exit code says. Any other, or a signal: it broke."""

    OVER = EXIT_DONE
    REFUSED = EXIT_BAD_INPUT
    """With a message of its own; so would the next one be."""
    GAVE_UP = EXIT_GAVE_UP
    """For a reason that is no chance (`SearchController.gave_up`): trials would go on failing."""
    INTERRUPTED = EXIT_INTERRUPTED
    """By a person."""
    DISK_FULL = 74
    """Nothing more can be written, with a message of its own."""
    BROKEN = 75
    """Ray gave up."""
    CONSOLIDATED = 76
    """The next session is to go on, on other processes."""


_OF_ITS_OWN = set(SessionExit) - {SessionExit.BROKEN}
"""Codes that a session which was asked to stop ends with by itself."""


def run_with_restarts(
    session: Callable[[], int],
    progress: Callable[[], int],
    seconds_left: Callable[[], float],
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    is_asked: Callable[[], bool] = lambda: False,
    last_error: Callable[[], str | None] = lambda: None,
) -> SessionExit:
    """Runs a session, and again where it breaks, until one ends by itself or no time is left; says how that ended.

    `progress` grows with what is on disk, `last_error` is what a session that broke has said of the cause. Once the
    search `is_asked` to stop, nothing begins again. Raises `SearchBroken` if sessions break `MOST_IN_A_ROW` times
    without any progress.
    """
    in_a_row, known = 0, progress()
    while not is_asked():
        code = session()
        if code == SessionExit.CONSOLIDATED and seconds_left() > 0:
            continue
        if code == SessionExit.CONSOLIDATED:
            return SessionExit.OVER
        if code in _OF_ITS_OWN:
            return SessionExit(code)
        if seconds_left() <= 0:
            return SessionExit.OVER
        now_known = progress()
        in_a_row = 1 if now_known > known else in_a_row + 1
        known = max(known, now_known)
        if in_a_row == MOST_IN_A_ROW:
            raise SearchBroken(
                f"the search broke {MOST_IN_A_ROW} times in a row without getting on, the last time with "
                f"{in_words(code)}: {last_error() or 'it left no word'}"
            )
        wait = min(2.0**in_a_row, _LONGEST_WAIT_SECONDS, max(0.0, seconds_left()))
        say(f"the search broke ({in_words(code)}), and goes on from what is on disk in {wait:.0f} s")
        sleep(wait)
    return SessionExit.INTERRUPTED


def in_words(code: int) -> str:
    """An exit code, for people."""
    if code == SessionExit.BROKEN:
        return "Ray gave up"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def evaluations_on_disk(run: RunDir) -> int:
    """Of all trials, and the endings: it grows whenever a search gets on."""
    lines = sum(len(read_json_lines(file)) for file in (run.path / "trials").glob("*/metrics.jsonl"))
    return lines + len(list((run.path / "trials").glob("*/ending.json")))


def supervise(
    run: RunDir, now: Callable[[], datetime], say: Callable[[str], None], interruption: Interruption
) -> SessionExit:
    """`run_with_restarts` with real sessions of the search in a run folder, by the clock of the search's command."""
    log = search_log(run)
    sizes = [size(log)]

    def session() -> int:
        sizes.append(size(log))
        return run_session(run, now, interruption)

    return run_with_restarts(
        session,
        lambda: evaluations_on_disk(run),
        lambda: run.read_search().deadline.training_seconds_left(now()),
        say,
        interruption.sleep,
        lambda: interruption.is_asked,
        lambda: last_error(log, sizes[-1]),
    )


def run_session(run: RunDir, now: Callable[[], datetime], interruption: Interruption) -> int:
    """Runs one session in a process of its own, until it ends or is too late to; returns its exit code.

    No process of it, or of one before it, is left afterwards. The first SIGINT or SIGTERM is the session's to obey: it
    stops in order; the second ends it at once.
    """
    end_last_session(run)
    ahead = (now() - datetime.now(UTC)).total_seconds()
    command = [sys.executable, "-m", "orchestrator.supervisor.session", str(run.path), str(os.getpid()), str(ahead)]
    with held_back():
        process = subprocess.Popen(command, start_new_session=True)
    try:
        with interruption.handed_on(process):
            code = _wait(process, lambda: _is_too_late(run, now()), interruption)
    finally:
        end_session(process.pid)
        process.wait()
        if sys.stdout.isatty():
            print(_SHOW_CURSOR, end="", flush=True)  # a table that was being drawn has hidden it
        clear_session(run, broke=process.returncode not in _OF_ITS_OWN)
    return SessionExit.INTERRUPTED if interruption.is_asked and code not in _OF_ITS_OWN else code


def _wait(process: subprocess.Popen[bytes], is_too_late: Callable[[], bool], interruption: Interruption) -> int:
    while True:
        try:
            return process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if interruption.times >= _PATIENCE:
                return SessionExit.INTERRUPTED
            if is_too_late():
                # It stops by itself earlier, unless it hangs; the rest of the time is the export's.
                return SessionExit.OVER


def _is_too_late(run: RunDir, now: datetime) -> bool:
    deadline = run.read_search().deadline
    return -deadline.training_seconds_left(now) > _LATEST * deadline.reserve_seconds
