"""Heartbeats of a backend's threads, by which a hanging thread is recognised.

A working thread beats with every piece of work. A thread that waits for another thread, or for a callback of the
launcher, is resting and isn't counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Heartbeat:
    """Last heartbeats of the threads at work. Thread-safe; `beat` to `resting` concern the calling thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._beats: dict[int, float] = {}

    def beat(self) -> None:
        """Record that the calling thread is at work and makes progress."""
        with self._lock:
            self._beats[threading.get_ident()] = time.monotonic()

    def stop(self) -> None:
        """Record that the calling thread has no work until it beats again."""
        with self._lock:
            self._beats.pop(threading.get_ident(), None)

    @contextmanager
    def working(self) -> Iterator[Callable[[], None]]:
        """Count the calling thread as at work inside the block; yield its heartbeat, which any thread may call."""
        thread = threading.get_ident()

        def beat() -> None:
            with self._lock:
                if thread in self._beats:
                    self._beats[thread] = time.monotonic()

        self.beat()
        try:
            yield beat
        finally:
            self.stop()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Count the calling thread as waiting inside the block; if it was at work before, it is again afterwards."""
        with self._lock:
            was_at_work = self._beats.pop(threading.get_ident(), None) is not None
        try:
            yield
        finally:
            if was_at_work:
                self.beat()

    def seconds_since_progress(self) -> float | None:
        """Return the seconds since the oldest of the threads' last heartbeats; None: no thread is at work."""
        with self._lock:
            oldest = min(self._beats.values(), default=None)
        return None if oldest is None else time.monotonic() - oldest
