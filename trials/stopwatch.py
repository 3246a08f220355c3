"""How long a trial takes, and how much of that it trains."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds since the trial began, and of these the seconds spent in optimizer steps."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._resumed: float | None = None
        self.training_seconds = 0.0

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
