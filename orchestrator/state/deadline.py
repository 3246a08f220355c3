"""The end of a search: an absolute time, fixed when the command starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta, tzinfo

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

    @property
    def shown_here(self) -> str:
        """The end as this machine's clocks show it, in brackets, where a time of day was asked for."""
        return f" ({self.ends.astimezone():%H:%M %Z} here)" if self.is_time_of_day else ""

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
    """A deadline at the next HH:MM that a clock on the wall shows here. Raises `InputError` for anything else."""
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", until.strip(), re.ASCII)
    if not match:
        raise InputError(f"--until {until!r} is no time of day. Write hours and minutes, such as 07:00.")
    ends = next_time_of_day(time(int(match[1]), int(match[2])), started)
    return replace(_checked(started, ends, reserve), is_time_of_day=True)


def next_time_of_day(wanted: time, after: datetime, zone: tzinfo | None = None) -> datetime:
    """The first moment (UTC) after another at which clocks show a time of day; `zone` None: this machine's.

    Where clocks go back, they show some times twice: the first that is still to come is meant. Where they go forward,
    some are never shown; such a time is counted from the hours before the change (as RFC 5545 does): 02:30 is then
    03:30.
    """
    # By calendar, each day by its own rules: what `after` is ahead of UTC holds only until clocks are changed.
    today = after.astimezone(zone).date()
    days = (datetime.combine(today + timedelta(days=n), wanted, zone) for n in (-1, 0, 1, 2))
    moments = (moment for day in days for moment in _moments(day))
    return next(moment for moment in moments if moment > after)


def _moments(local: datetime) -> list[datetime]:
    """When clocks show a local time (UTC), in order: once, twice, or for one that is never shown what stands for it."""
    first, second = (local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
    return [first] if second <= first else [first, second]


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
