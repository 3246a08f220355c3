"""Signs of life of the engine's threads, by which others see that one of them hangs.

A thread that works beats with every piece of work; one that waits for another thread, or for the word of whoever runs
the trial, rests meanwhile and isn't counted: the thread that it waits for is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Heartbeat:
    """Of the threads at work. Its methods may be called from any thread; each is about the thread that calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._beats: dict[int, float] = {}

    def beat(self) -> None:
        """The calling thread is at work, and gets on."""
        with self._lock:
            self._beats[threading.get_ident()] = time.monotonic()

    def stop(self) -> None:
        """The calling thread has nothing to do from now on, until it beats again."""
        with self._lock:
            self._beats.pop(threading.get_ident(), None)

    @contextmanager
    def working(self) -> Iterator[None]:
        """The calling thread is at work inside."""
        self.beat()
        try:
            yield
        finally:
            self.stop()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """The calling thread waits for others inside; if it was at work, it is again afterwards."""
        with self._lock:
            was_at_work = self._beats.pop(threading.get_ident(), None) is not None
        try:
            yield
        finally:
            if was_at_work:
                self.beat()

    def seconds_since_progress(self) -> float | None:
        """Since the last beat of the thread that has been silent longest; None: nobody is at work."""
        with self._lock:
            oldest = min(self._beats.values(), default=None)
        return None if oldest is None else time.monotonic() - oldest
