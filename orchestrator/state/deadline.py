"""Deadline of a search: an absolute time, fixed when the command starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Annotated

from pydantic import AwareDatetime, Field, FiniteFloat, PlainSerializer

from search_spaces.durations import format_duration, parse_duration
from trials.errors import InputError

Moment = Annotated[AwareDatetime, PlainSerializer(datetime.isoformat, when_used="json")]
"""Time with its offset from UTC; in files in ISO 8601."""
_FIRST_LEAST, _FIRST_MOST, _FIRST_SHARE = 30.0, 600.0, 0.08


@dataclass(frozen=True)
class Deadline:
    """Start of the search, time at which its export must exist (both UTC), and seconds reserved for the export."""

    started: Moment
    ends: Annotated[Moment, Field(alias="deadline")]
    reserve_seconds: FiniteFloat
    is_time_of_day: bool = False
    """Whether `ends` is a time of day (--until), or a time elapsed since `started` (--budget)."""

    @property
    def training_ends(self) -> datetime:
        """Time (UTC) after which nothing is trained; the rest is for verification, export and report."""
        return self.ends - timedelta(seconds=self.reserve_seconds)

    @property
    def shown_here(self) -> str:
        """End in this machine's local time, in brackets, if a time of day was given; else empty."""
        return f" ({self.ends.astimezone():%H:%M %Z} here)" if self.is_time_of_day else ""

    def seconds_left(self, now: datetime) -> float:
        """Return the seconds until the end; negative after it."""
        return (self.ends - now).total_seconds()

    def training_seconds_left(self, now: datetime) -> float:
        """Return the seconds until the end of training; negative after it."""
        return (self.training_ends - now).total_seconds()

    def with_reserve(self, seconds: float) -> Deadline:
        """Return this deadline with another reserve, such as the measured one."""
        return replace(self, reserve_seconds=seconds)


def first_reserve(budget_seconds: float) -> float:
    """Return the reserve in seconds before it is measured: 8 % of the budget, at least 30 s, at most 10 minutes."""
    return min(_FIRST_MOST, max(_FIRST_LEAST, _FIRST_SHARE * budget_seconds))


def from_budget(budget: str, reserve: str | None, started: datetime) -> Deadline:
    """Return the deadline of a budget; `reserve` None: `first_reserve` until it is measured.

    Raises `InputError` if the reserve leaves no time to train.
    """
    return _checked(started, started + timedelta(seconds=parse_duration(budget)), reserve)


def from_until(until: str, reserve: str | None, started: datetime) -> Deadline:
    """Return the deadline at the next HH:MM in local time; `reserve` as in `from_budget`.

    Raises `InputError` if `until` is no time of day, or if the reserve leaves no time to train.
    """
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", until.strip(), re.ASCII)
    if not match:
        raise InputError(f"--until {until!r} is no time of day. Write hours and minutes, such as 07:00.")
    ends = next_time_of_day(time(int(match[1]), int(match[2])), started)
    return replace(_checked(started, ends, reserve), is_time_of_day=True)


def next_time_of_day(wanted: time, after: datetime, zone: tzinfo | None = None) -> datetime:
    """Return the first moment (UTC) after `after` at which local clocks show a time of day.

    `zone` None: this machine's. If clocks are set back, some times occur twice; the next occurrence counts. If clocks
    are set forward, some times don't occur. Such a time is taken with the UTC offset from before the change, as in
    RFC 5545: 02:30 is then 03:30.
    """
    # Computed for each calendar day, because the UTC offset of `after` holds only until the next change of clocks.
    today = after.astimezone(zone).date()
    days = (datetime.combine(today + timedelta(days=n), wanted, zone) for n in (-1, 0, 1, 2))
    moments = (moment for day in days for moment in _moments(day))
    return next(moment for moment in moments if moment > after)


def _moments(local: datetime) -> list[datetime]:
    """Return the moments (UTC) of a local time, ascending: one, or two if clocks are set back over it.

    A local time that doesn't occur gives one moment, by the UTC offset from before the change.
    """
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
