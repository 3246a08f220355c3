"""Supervisor of a search: runs sessions one after another until the search is over, and restarts broken ones.

A session is a process of its own (`orchestrator.supervisor.session`) with a Ray of its own. Ray ends its driver process
when it breaks, so the supervisor cannot be the driver. The run folder is consistent at any moment, and the next session
continues from it. Before that, all processes of the last session are killed, so that none still writes to the run
folder, or holds a GPU.
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
"""Number of sessions that break in a row without progress on disk, at which the supervisor gives up.

The waits in between add up to three minutes: a cause that lasts so long is not transient.
"""
_LONGEST_WAIT_SECONDS = 60.0
_SHOW_CURSOR = "\x1b[?25h"
_LATEST = 0.75
"""Share of the reserve after which a session is killed; it stops by itself earlier (`SearchController.should_stop`)."""
_POLL_SECONDS = 2.0
_PATIENCE = 3
"""Number of signals after which the supervisor kills a session that has not ended."""


class SessionExit(IntEnum):
    """Exit codes of a session. Any other code, or a signal, means that it broke."""

    OVER = EXIT_DONE
    REFUSED = EXIT_BAD_INPUT
    """The input is wrong, as the session's own message says; a restart would not help."""
    GAVE_UP = EXIT_GAVE_UP
    """The controller gave up (`SearchController.gave_up`), because trials would go on failing."""
    INTERRUPTED = EXIT_INTERRUPTED
    """A person stopped the search."""
    DISK_FULL = 74
    """The disk is full, as the session's own message says."""
    BROKEN = 75
    """Ray failed under the session, which can be restarted."""
    CONSOLIDATED = 76
    """The next session is to train each trial on all GPUs of a machine together."""


_OF_ITS_OWN = set(SessionExit) - {SessionExit.BROKEN}
"""Exit codes of sessions that have ended by themselves, without having broken."""


def run_with_restarts(
    session: Callable[[], int],
    progress: Callable[[], int],
    seconds_left: Callable[[], float],
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    is_asked: Callable[[], bool] = lambda: False,
    last_error: Callable[[], str | None] = lambda: None,
) -> SessionExit:
    """Run sessions until one ends in order, or no time is left; return how the search ended.

    `progress` counts results on disk. `last_error` returns the last error message of the session that broke; None: it
    left none. Once `is_asked` returns True, no session is started. Raises `SearchBroken` if sessions break
    `MOST_IN_A_ROW` times in a row without progress.
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
    """Return an exit code in words."""
    if code == SessionExit.BROKEN:
        return "Ray gave up"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def evaluations_on_disk(run: RunDir) -> int:
    """Return the number of evaluations and endings of all trials on disk: a measure of progress."""
    lines = sum(len(read_json_lines(file)) for file in (run.path / "trials").glob("*/metrics.jsonl"))
    return lines + len(list((run.path / "trials").glob("*/ending.json")))


def supervise(
    run: RunDir, now: Callable[[], datetime], say: Callable[[str], None], interruption: Interruption
) -> SessionExit:
    """Supervise the search in a run folder: call `run_with_restarts` with sessions in processes of their own.

    `now` is the clock of the search's command.
    """
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
    """Run one session in a process of its own until it ends or is too late; return its exit code.

    No process of it, or of an earlier one, is left afterwards. SIGINT and SIGTERM are forwarded to the session: the
    first stops it in order, the second at once.
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
            print(_SHOW_CURSOR, end="", flush=True)  # the live table hides the cursor
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
                # A session stops by itself earlier unless it hangs; the rest of the time is for the export.
                return SessionExit.OVER


def _is_too_late(run: RunDir, now: datetime) -> bool:
    deadline = run.read_search().deadline
    return -deadline.training_seconds_left(now) > _LATEST * deadline.reserve_seconds
