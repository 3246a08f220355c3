"""What a trial says while it runs, kept where people find it in the morning: its log lines, and its process's output.

RUN/trials/<id>/log.txt   log lines of one trial, through all its segments
RUN/logs/<process>.log    whatever a process wrote to stdout and stderr, a library's traceback or a driver's complaint
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
"""The folder of the trial whose thread this is: others may be in the same process."""


class _Dated(logging.Formatter):
    """Lines of machines in several time zones can be laid side by side."""

    converter = time.gmtime  # type: ignore[assignment]  # as the logging cookbook has it

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")


class _TrialLog(logging.FileHandler):
    """Opened at the first line. Where nothing can be written, logging complains on stderr, and the trial goes on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LOG_FILE, delay=True, encoding="utf-8")
        self.addFilter(lambda _: _trial.get() == folder)
        self.setFormatter(_Dated())

    def emit(self, record: logging.LogRecord) -> None:
        """As its base, which doesn't expect that opening fails."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


@contextmanager
def trial_log(folder: Path) -> Iterator[None]:
    """Adds what this thread logs inside to the log of a trial's folder, each line at once."""
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
    """From now on, this process's stdout and stderr go to the end of a file, and its log lines have a date.

    Of all that is in the process: libraries in C write to the same descriptors. Where the file can't be opened,
    everything stays as it is.
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
