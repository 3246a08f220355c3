"""The clock of a search, which nobody sets back or forward while it runs.

A wall clock may jump: by hand, by a time server, after a machine has slept. What a search has left is counted on a
clock that only ever goes on (CLOCK_BOOTTIME, which counts the time asleep too). `--budget` means elapsed time, so a
jump of the wall clock changes nothing. `--until` means a time of day, so there a correction of the wall clock counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_SLEWED_SECONDS = 2.0
"""Time servers move a clock by small steps all the time: up to here it's the same clock."""


def steady_seconds() -> float:
    """Seconds on a clock that only goes on, through a machine's sleep where the system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class SteadyClock:
    """The present time (UTC): wall clock at its creation, plus what has elapsed since.

    `is_time_of_day`: it follows the wall clock where that jumps, as `--until` asks for.
    """

    def __init__(
        self,
        *,
        is_time_of_day: bool = False,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_seconds,
    ) -> None:
        self._follows_wall = is_time_of_day
        self._wall = wall
        self._steady = steady
        self._began = steady()
        self._origin = datetime.fromtimestamp(wall(), UTC)
        self._at_creation = self._origin

    def __call__(self) -> datetime:
        """The present time; for a time of day, with all jumps of the wall clock beyond 2 s."""
        elapsed = timedelta(seconds=self.elapsed())
        wall = datetime.fromtimestamp(self._wall(), UTC)
        if self._follows_wall and abs((wall - self._origin - elapsed).total_seconds()) > _SLEWED_SECONDS:
            self._origin = wall - elapsed
        return self._origin + elapsed

    def elapsed(self) -> float:
        """Seconds since its creation, whatever the wall clock did."""
        return self._steady() - self._began

    def jumped(self) -> float:
        """Seconds by which the wall clock has moved against elapsed time since the creation; forward is positive."""
        shown = datetime.fromtimestamp(self._wall(), UTC) - self._at_creation
        return shown.total_seconds() - self.elapsed()
