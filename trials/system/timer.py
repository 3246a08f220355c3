"""How long a trial takes, and how much of that it trains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class TrialTimer:
    """Seconds since the trial began, and of these the seconds spent in optimizer steps.

    A trial that is resumed goes on from the seconds it had; the time in which nobody ran it isn't counted.
    """

    def __init__(self, seconds: float = 0.0, training_seconds: float = 0.0) -> None:
        self._began = time.monotonic() - seconds
        self._resumed: float | None = None
        self.training_seconds = training_seconds

    @property
    def seconds(self) -> float:
        """Since the trial began."""
        return time.monotonic() - self._began

    def start_training(self) -> None:
        """Optimizer steps follow."""
        self._resumed = time.monotonic()

    def stop_training(self) -> None:
        """Something else follows: an evaluation, a score."""
        if self._resumed is not None:
            self.training_seconds += time.monotonic() - self._resumed
            self._resumed = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Something else inside; optimizer steps follow only if they were running before."""
        was_training = self._resumed is not None
        self.stop_training()
        yield
        if was_training:
            self.start_training()
