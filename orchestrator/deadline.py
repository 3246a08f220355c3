"""The end of a search: an absolute time, fixed when the command starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from search_spaces.durations import format_duration, parse_duration
from trials.errors import InputError

_FIRST_LEAST, _FIRST_MOST, _FIRST_SHARE = 30.0, 600.0, 0.08


@dataclass(frozen=True)
class Deadline:
    """When the search began and when its export has to exist (both UTC), and the seconds kept for the export."""

    started: datetime
    ends: datetime
    reserve_seconds: float
    is_time_of_day: bool = False
    """Whether `ends` is what a wall clock shows then (--until), or a time elapsed since `started` (--budget)."""

    @property
    def training_ends(self) -> datetime:
        """From here on nothing is trained: the rest belongs to verification, export and report."""
        return self.ends - timedelta(seconds=self.reserve_seconds)

    def seconds_left(self, now: datetime) -> float:
        """Until the end; negative after it."""
        return (self.ends - now).total_seconds()

    def training_seconds_left(self, now: datetime) -> float:
        """Until nothing is trained any more; negative after that."""
        return (self.training_ends - now).total_seconds()

    def with_reserve(self, seconds: float) -> Deadline:
        """The same end, with so many seconds kept before it: what the reserve was measured to need."""
        return replace(self, reserve_seconds=seconds)


def first_reserve(budget_seconds: float) -> float:
    """What is kept for the export before that is measured: 8 % of the budget, at least 30 s and at most 10 minutes."""
    return min(_FIRST_MOST, max(_FIRST_LEAST, _FIRST_SHARE * budget_seconds))


def from_budget(budget: str, reserve: str | None, started: datetime) -> Deadline:
    """A deadline so long after the start; `reserve` None: a first guess until it's measured.

    Raises `InputError` if the reserve leaves no time to train.
    """
    return _checked(started, started + timedelta(seconds=parse_duration(budget)), reserve)


def from_until(until: str, reserve: str | None, started: datetime) -> Deadline:
    """A deadline at the next HH:MM of this machine's local time. Raises `InputError` for anything else."""
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", until.strip())
    if not match:
        raise InputError(f"--until {until!r} is no time of day. Write hours and minutes, such as 07:00.")
    local = started.astimezone()
    ends = local.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    if ends <= local:
        # By calendar, not by adding 24 hours: seven o'clock stays seven o'clock when clocks change overnight.
        tomorrow = (local + timedelta(days=1)).date()
        ends = datetime(tomorrow.year, tomorrow.month, tomorrow.day, int(match[1]), int(match[2])).astimezone()
    return replace(_checked(started, ends.astimezone(UTC), reserve), is_time_of_day=True)


def _checked(started: datetime, ends: datetime, reserve: str | None) -> Deadline:
    seconds = (ends - started).total_seconds()
    kept = first_reserve(seconds) if reserve is None else parse_duration(reserve)
    if kept >= seconds:
        raise InputError(
            f"a budget of {format_duration(seconds)} is too short: search.reserve keeps {format_duration(kept)} for "
            "verification, export and report, which leaves no time for a single evaluation. Give a longer --budget, "
            "or set a smaller search.reserve."
        )
    return Deadline(started, ends, kept)
