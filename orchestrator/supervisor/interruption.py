"""SIGINT and SIGTERM of a search: the first one stops in order what is at work, a second one ends it.

A search's command hands them on to the session that is at work. While it exports, the export in hand is completed
first; a second signal leaves the export that was there before.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_SECONDS = 0.2


class Interruption:
    """What a search's command was asked by signals, from the first session to the report."""

    def __init__(self) -> None:
        self.times = 0
        """Signals so far."""
        self._session: subprocess.Popen[bytes] | None = None
        self._while_finishing: int | None = None

    @property
    def is_asked(self) -> bool:
        """Whether the search is to stop."""
        return self.times > 0

    def sleep(self, seconds: float) -> None:
        """Waits, but no longer than until the search is to stop."""
        ends = time.monotonic() + seconds
        while not self.is_asked and (left := ends - time.monotonic()) > 0:
            time.sleep(min(_LOOK_SECONDS, left))

    @contextmanager
    def handed_on(self, session: subprocess.Popen[bytes]) -> Iterator[None]:
        """Hands signals on to a session, which a terminal doesn't reach."""
        self._session = session
        if self.is_asked:  # while it was being started
            session.send_signal(signal.SIGINT)
        try:
            yield
        finally:
            self._session = None

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """What is at work inside is completed first; a second signal raises `KeyboardInterrupt`."""
        self._while_finishing = 0
        try:
            yield
        finally:
            self._while_finishing = None

    def on_signal(self, number: int, _frame: FrameType | None = None) -> None:
        """A signal's handler."""
        self.times += 1
        if self._session is not None:
            self._session.send_signal(number)
        elif self._while_finishing is not None:
            self._while_finishing += 1
            if self._while_finishing > 1:
                raise KeyboardInterrupt
            sys.stdout.write("the export in hand is completed first; the same signal once more ends it at once\n")


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Takes SIGINT and SIGTERM inside the block, also where a shell started this process with Ctrl-C ignored."""
    asked = Interruption()
    before = {number: signal.signal(number, asked.on_signal) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Holds both signals back from a process that is started inside, until it calls `obey`.

    Else they would end it with a traceback while it still imports its modules.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey() -> None:
    """From now on both signals raise `KeyboardInterrupt` in this process's main thread."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
