"""RUN/logs/search.log: all that a search says, its command and its sessions, whether or not anybody reads it then.

Every line is there before it's on the console, under the time (UTC) when it was said: what became of trials, as a pipe
shows it, also where the console shows a table; errors with their tracebacks; what is left of a crash.
`trials.console.terminal` sees to the console.
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
    """The log of a search, by its run folder."""
    return LineLog(folder.logs / "search.log")


def log_command(folder: RunDir) -> None:
    """Has this process, the search's command, log all that it says; it must have the run folder to itself."""
    speak_into(_begun(folder, "command"))


def log_session(folder: RunDir) -> None:
    """Has this process, a session, log its errors from now on, and what is left of it should it crash.

    Its events are for `orchestrator.monitoring.console.live_view` to log, as they aren't lines where they're shown.
    """
    log = _begun(folder, "session")
    copy_output(log, stdout=False)
    divert_errors(log)
    faulthandler.enable(2)
    write_behind()


def size(log: LineLog) -> int:
    """Bytes of the log so far."""
    try:
        return log.path.stat().st_size
    except OSError:
        return 0


def last_error(log: LineLog, since: int) -> str | None:
    """What was logged last as an error after the log had so many bytes; None: nothing was."""
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
