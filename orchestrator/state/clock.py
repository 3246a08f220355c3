"""Clock of a search, independent of jumps of the wall clock.

A wall clock may jump: by hand, by a time server, after a machine has slept. So the time left is counted on a monotonic
clock (CLOCK_BOOTTIME, which includes time asleep). `--budget` means elapsed time, so a jump of the wall clock changes
nothing. `--until` means a time of day, so a correction of the wall clock counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_SLEWED_SECONDS = 2.0
"""A smaller difference is no jump, because time servers adjust a clock in small steps all the time."""


def steady_seconds() -> float:
    """Return the seconds of a monotonic clock, which includes the machine's sleep if the system has CLOCK_BOOTTIME."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class SteadyClock:
    """Callable that returns the present time (UTC): wall clock at its creation, plus the time elapsed since.

    `is_time_of_day`: whether it follows jumps of the wall clock, as `--until` requires.
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

    def __call__(self) -> datetime:
        """Return the present time; with `is_time_of_day`, jumps of the wall clock by more than 2 s are included."""
        elapsed = timedelta(seconds=self.elapsed())
        wall = datetime.fromtimestamp(self._wall(), UTC)
        if self._follows_wall and abs((wall - self._origin - elapsed).total_seconds()) > _SLEWED_SECONDS:
            self._origin = wall - elapsed
        return self._origin + elapsed

    def elapsed(self) -> float:
        """Return the seconds since creation, unaffected by the wall clock."""
        return self._steady() - self._began
