"""Watchdog for trials outside of an engine: ends the process if a trial waits for data or in a step without end.

Any forward pass of any model counts as progress: in training, in evaluation, and in generating answers.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Watchdog:
    """Counts the seconds since a trial last made progress, except while it waits for the search."""

    def __init__(self) -> None:
        self._last: float | None = time.monotonic()

    def beat(self) -> None:
        """Record that the trial made progress."""
        if self._last is not None:
            self._last = time.monotonic()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Stop counting inside the block, in which the trial waits for the search, however long that takes."""
        self._last = None
        try:
            yield
        finally:
            self._last = time.monotonic()

    def seconds_silent(self) -> float:
        """Return the seconds since the last progress; 0 inside `resting`."""
        last = self._last
        return 0.0 if last is None else time.monotonic() - last


@contextmanager
def ending_if_hung(limit_seconds: float) -> Iterator[Watchdog]:
    """End this process if the block makes no progress for so long, with the tracebacks of all threads on stderr."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    watchdog, is_over = Watchdog(), threading.Event()
    hook = register_module_forward_pre_hook(lambda *_: watchdog.beat())
    threading.Thread(target=_watch, args=(watchdog, limit_seconds, is_over), daemon=True).start()
    try:
        yield watchdog
    finally:
        is_over.set()
        hook.remove()


def _watch(watchdog: Watchdog, limit_seconds: float, is_over: threading.Event) -> None:
    while not is_over.wait(min(1.0, limit_seconds / 4)):
        if watchdog.seconds_silent() > limit_seconds:
            sys.stderr.write(f"no progress in {limit_seconds:g} s (machine.step_limit_seconds): this process ends\n")
            faulthandler.dump_traceback(file=sys.__stderr__ or 2)
            # The thread cannot be ended otherwise. The files of the trial are consistent at any moment.
            os._exit(1)
