"""Failures of code that only reports on trials: a warning in the trial's log, never a failed trial."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class ReportingFailures:
    """Failures in this process since the last `pop_unreported`, by subject. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._untold: dict[str, str] = {}

    def record(self, about: str, text: str) -> None:
        """Log a warning for this thread's trial, and keep the first text of each subject for `pop_unreported`."""
        logger.warning("%s: %s", about, text)
        with self._lock:
            self._untold.setdefault(about, text)

    def pop_unreported(self) -> dict[str, str]:
        """Return the texts that were not returned before, by subject."""
        with self._lock:
            taken, self._untold = self._untold, {}
        return taken


TROUBLES = ReportingFailures()
"""Failures of this process."""


@contextmanager
def only_reporting(about: str, note: Callable[[str, str], None] = TROUBLES.record) -> Iterator[None]:
    """Turn an error inside into a call of `note(about, text)`. For code that only reports."""
    try:
        yield
    except Exception as error:
        note(about, f"{type(error).__name__}: {error}")
