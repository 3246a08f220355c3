"""Clock of a trial: how long it takes, and how much of that it trains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class TrialTimer:
    """Seconds since the trial began, and of these the seconds spent in optimizer steps.

    A resumed trial goes on from the seconds it had. Time in which it did not run isn't counted.
    """

    def __init__(self, seconds: float = 0.0, training_seconds: float = 0.0) -> None:
        self._began = time.monotonic() - seconds
        self._resumed: float | None = None
        self.training_seconds = training_seconds

    @property
    def seconds(self) -> float:
        """Seconds since the trial began."""
        return time.monotonic() - self._began

    def start_training(self) -> None:
        """Record that optimizer steps follow."""
        self._resumed = time.monotonic()

    def stop_training(self) -> None:
        """Record that something else follows: an evaluation, a score."""
        if self._resumed is not None:
            self.training_seconds += time.monotonic() - self._resumed
            self._resumed = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the training clock inside; start it again after only if it was running before."""
        was_training = self._resumed is not None
        self.stop_training()
        yield
        if was_training:
            self.start_training()
