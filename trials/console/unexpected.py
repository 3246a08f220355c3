"""Errors that no code raised on purpose: one line for the user, the traceback in a file.

The file is the log of the command's folder: RUN/logs/search.log, or log.txt of a trial's folder. A command without such
a folder leaves it in a temporary file that only this user can read.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from trials.console.line_log import LineLog

_places: list[LineLog] = []
"""Log that receives tracebacks; empty: each goes to a temporary file."""


def keep_tracebacks_in(log: LineLog | None) -> None:
    """Append tracebacks to this log from now on; None: write each to a temporary file."""
    _places[:] = [] if log is None else [log]


def explained(error: BaseException) -> str:
    """Return one line about an error; the line names the file with its traceback."""
    path = keep_traceback(error)
    words = str(error).strip().split("\n")[0].rstrip(".")
    said = f": {words}" if words else ""
    where = f"Its traceback is in {path}" if path else "Its traceback couldn't be written anywhere"
    return f"an unexpected {type(error).__name__}{said}. {where}"


def keep_traceback(error: BaseException) -> Path | None:
    """Write an error's traceback with that of its causes to a file; return its path, or None if that's impossible."""
    text = "".join(traceback.format_exception(error))
    for place in _places:
        if place.append(text):
            return place.path
    try:
        file, name = tempfile.mkstemp(prefix="qlora-orchestrator-", suffix=".txt")
        with os.fdopen(file, "w", encoding="utf-8", errors="backslashreplace") as written:
            written.write(text)
    except OSError:
        return None
    return Path(name)


def explain_background_errors() -> None:
    """Explain errors in threads as `explained` does; keep the tracebacks of errors that Python would only print."""
    threading.excepthook = _in_thread
    sys.unraisablehook = _unraisable


def _in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and arguments.exc_type is not SystemExit:
        sys.stderr.write(f"error in the background: {explained(arguments.exc_value)}\n")


def _unraisable(arguments: sys.UnraisableHookArgs) -> None:
    """Keep the traceback if there is a log; Python ignores these errors, so no line is shown."""
    if _places and arguments.exc_value is not None:
        keep_traceback(arguments.exc_value)
