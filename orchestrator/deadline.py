"""The end of a search: an absolute time, fixed when the command starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from search_spaces.durations import format_duration, parse_duration
from trials.errors import InputError


@dataclass(frozen=True)
class Deadline:
    """When the search began and when its export has to exist (both UTC), and the seconds kept for the export."""

    started: datetime
    ends: datetime
    reserve_seconds: float

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


def from_budget(budget: str, reserve: str, started: datetime) -> Deadline:
    """A deadline so long after the start. Raises `InputError` if the reserve leaves no time to train."""
    return _checked(Deadline(started, started + timedelta(seconds=parse_duration(budget)), parse_duration(reserve)))


def from_until(until: str, reserve: str, started: datetime) -> Deadline:
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
    return _checked(Deadline(started, ends.astimezone(UTC), parse_duration(reserve)))


def _checked(deadline: Deadline) -> Deadline:
    if deadline.training_ends <= deadline.started:
        total = format_duration((deadline.ends - deadline.started).total_seconds())
        reserve = format_duration(deadline.reserve_seconds)
        raise InputError(
            f"a budget of {total} is too short: search.reserve keeps {reserve} for verification, export and report, "
            "which leaves no time for a single evaluation. Give a longer --budget, or set a smaller search.reserve."
        )
    return deadline
