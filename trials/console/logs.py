"""Log lines of each trial, and the output of each process.

RUN/trials/<id>/log.txt   log lines of one trial, through all its segments
RUN/logs/<process>.log    all that a process wrote to stdout and stderr, such as a traceback or a driver's complaint
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

LOG_FILE = "log.txt"
logger = logging.getLogger(__name__)
_trial: ContextVar[Path | None] = ContextVar("trial", default=None)
"""Folder of the trial that this thread runs; others may be in the same process. None: no trial."""


class _Dated(logging.Formatter):
    """Formats log lines with UTC times, so that those of machines in several time zones can be compared."""

    converter = time.gmtime  # type: ignore[assignment]  # as the logging cookbook has it

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")


class _TrialLog(logging.FileHandler):
    """Log file of one trial, opened at the first line.

    If it can't be written, logging complains on stderr, and the trial goes on.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LOG_FILE, delay=True, encoding="utf-8")
        self.addFilter(lambda _: _trial.get() == folder)
        self.setFormatter(_Dated())

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as `logging.FileHandler` does, which doesn't expect that opening fails."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


@contextmanager
def trial_log(folder: Path) -> Iterator[None]:
    """Add what this thread logs inside to the log of a trial's folder, each line at once."""
    token, handler = _trial.set(folder), _TrialLog(folder)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):
            handler.close()
        _trial.reset(token)


def redirect_output(path: Path) -> None:
    """Append this process's stdout and stderr to a file from now on, and date its log lines.

    Output of C libraries is included: they write to the same descriptors. If the file can't be opened, nothing changes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        logger.warning("what this process writes isn't kept in %s: %s", path, error.strerror)
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Dated())
