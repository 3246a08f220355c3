"""RUN/logs/search.log: all output of a search, of its command and its sessions, independent of the console.

Every line has its time (UTC), and is in the log before it is on the console. The log contains:

- events of trials as lines of text, also while the console shows a table
- errors with their tracebacks
- what a crash writes to stderr

The console is handled by `trials.console.terminal`.
"""

from __future__ import annotations

import faulthandler
import os
import socket

from orchestrator.state.run_dir import RunDir
from trials.console.line_log import LineLog
from trials.console.terminal import copy_output, divert_errors, speak_into, write_behind
from trials.console.unexpected import keep_tracebacks_in

_ERROR = "error: "


def search_log(folder: RunDir) -> LineLog:
    """Return the log of the search in this run folder."""
    return LineLog(folder.logs / "search.log")


def log_command(folder: RunDir) -> None:
    """Copy all output of this process, the search's command, to the log.

    The process must have exclusive access to the run folder.
    """
    speak_into(_begun(folder, "command"))


def log_session(folder: RunDir) -> None:
    """Log the errors of this process, a session, from now on, including the traces of a crash.

    Events are logged by `orchestrator.monitoring.console.live_view`, because a table shows them without lines.
    """
    log = _begun(folder, "session")
    copy_output(log, stdout=False)
    divert_errors(log)
    faulthandler.enable(2)
    write_behind()


def size(log: LineLog) -> int:
    """Return the size of the log in bytes; 0 if it can't be read."""
    try:
        return log.path.stat().st_size
    except OSError:
        return 0


def last_error(log: LineLog, since: int) -> str | None:
    """Return the last error that was logged after the first `since` bytes; None: there is none."""
    try:
        with log.path.open("rb") as file:
            file.seek(since)
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    said = [line.partition(" ")[2] for line in lines]
    errors = [text.removeprefix(_ERROR) for text in said if text.startswith(_ERROR)]
    return errors[-1] if errors else None


def _begun(folder: RunDir, part: str) -> LineLog:
    log = search_log(folder)
    log.append(f"the search's {part} is process {os.getpid()} on {socket.gethostname()}")
    keep_tracebacks_in(log)
    return log
