"""SIGINT and SIGTERM of a search: the first signal stops it in order, the second one at once.

A search's command forwards the signals to the running session. During an export, the current export is completed first;
a second signal aborts it, and leaves an earlier export as it is.
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
    """Signals that a search's command has received, from the first session to the report."""

    def __init__(self) -> None:
        self.times = 0
        """Number of signals so far."""
        self._session: subprocess.Popen[bytes] | None = None
        self._while_finishing: int | None = None

    @property
    def is_asked(self) -> bool:
        """Whether the search is to stop."""
        return self.times > 0

    def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds, but only until the search is to stop."""
        ends = time.monotonic() + seconds
        while not self.is_asked and (left := ends - time.monotonic()) > 0:
            time.sleep(min(_LOOK_SECONDS, left))

    @contextmanager
    def handed_on(self, session: subprocess.Popen[bytes]) -> Iterator[None]:
        """Forward signals to a session, which is in a process session of its own and gets none from the terminal."""
        self._session = session
        if self.is_asked:  # while it was being started
            session.send_signal(signal.SIGINT)
        try:
            yield
        finally:
            self._session = None

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Complete the block on a first signal inside it; a second one raises `KeyboardInterrupt`."""
        self._while_finishing = 0
        try:
            yield
        finally:
            self._while_finishing = None

    def on_signal(self, number: int, _frame: FrameType | None = None) -> None:
        """Handle a signal."""
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
    """Handle SIGINT and SIGTERM inside the block, even if a shell started this process with SIGINT ignored."""
    asked = Interruption()
    before = {number: signal.signal(number, asked.on_signal) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Block both signals for a process that is started inside, until it calls `obey`.

    Otherwise they would end it with a traceback while it still imports its modules.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey() -> None:
    """Make both signals raise `KeyboardInterrupt` in this process's main thread from now on."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
