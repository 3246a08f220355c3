"""Trouble with what only reports on trials: a warning in the trial's log, never a trial that fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class ReportingFailures:
    """What went wrong in this process since somebody asked, by what it's about; any thread may note something."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._untold: dict[str, str] = {}

    def record(self, about: str, text: str) -> None:
        """Warns in the log of the trial whose thread this is, and keeps it for who asks next."""
        logger.warning("%s: %s", about, text)
        with self._lock:
            self._untold.setdefault(about, text)

    def pop_unreported(self) -> dict[str, str]:
        """What nobody was told yet, by what it's about."""
        with self._lock:
            taken, self._untold = self._untold, {}
        return taken


TROUBLES = ReportingFailures()
"""Of this process."""


@contextmanager
def only_reporting(about: str, note: Callable[[str, str], None] = TROUBLES.record) -> Iterator[None]:
    """What is done inside only reports: an error in it is noted as one `about` that, and goes no further."""
    try:
        yield
    except Exception as error:
        note(about, f"{type(error).__name__}: {error}")
