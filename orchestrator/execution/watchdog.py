"""Ends a process in which a trial hangs, where no engine looks after it: it waits for data, or its step never ends.

Any forward pass of any model counts as progress, so that training, evaluating and generating answers all do.
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
    """Counts the seconds since a trial got on, but for those in which it waits for its search."""

    def __init__(self) -> None:
        self._last: float | None = time.monotonic()

    def beat(self) -> None:
        """The trial gets on."""
        if self._last is not None:
            self._last = time.monotonic()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """The trial waits for its search inside, however long that takes."""
        self._last = None
        try:
            yield
        finally:
            self._last = time.monotonic()

    def seconds_silent(self) -> float:
        """Since the last beat; 0 while it rests."""
        last = self._last
        return 0.0 if last is None else time.monotonic() - last


@contextmanager
def ending_if_hung(limit_seconds: float) -> Iterator[Watchdog]:
    """Ends this process, with a traceback of all its threads on stderr, if the block hasn't got on for so long."""
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
            # What the trial has on disk is whole at any moment, and its thread can't be ended otherwise.
            os._exit(1)
