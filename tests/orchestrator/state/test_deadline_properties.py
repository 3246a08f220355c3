"""Deadlines over all time zones and the searches on which clocks are changed there."""

from __future__ import annotations

import os
import time as clocks
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.state.deadline import from_budget, from_until, next_time_of_day
from search_spaces.durations import format_duration, parse_duration
from trials.errors import InputError, RecipeError

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
CHANGES_CLOCKS = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "Africa/Casablanca")
ZONES = st.sampled_from(CHANGES_CLOCKS) | st.sampled_from(sorted(available_timezones() - {"localtime"}))
INSTANTS = st.datetimes(datetime(2024, 1, 1), datetime(2037, 12, 31), timezones=st.just(UTC))
TIMES = st.times().map(lambda found: found.replace(second=0, microsecond=0))


@contextmanager
def machine_in(zone: str) -> Iterator[None]:
    """This process as on a machine of that zone."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = zone
    clocks.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
        clocks.tzset()


@cache
def days_of_changes(zone: ZoneInfo, year: int) -> list[date]:
    """The days of a year in which clocks are changed."""
    days = [date(year, 1, 1) + n * DAY for n in range(365)]
    ahead = [datetime.combine(day, time(), zone).utcoffset() for day in days]
    return [day for day, before, after in zip(days, ahead, ahead[1:], strict=False) if before != after]


def as_shown(wanted: time, zone: ZoneInfo, after: datetime) -> datetime:
    """The next moment at which clocks show a time, or have passed it over, by a look at them at every minute."""
    minute = after.replace(second=0, microsecond=0) - DAY
    shown = minute.astimezone(zone).replace(tzinfo=None)
    while True:
        there = (minute + MINUTE).astimezone(zone).replace(tzinfo=None)
        meant = datetime.combine(there, wanted)
        if shown < meant <= there and (found := minute + (meant - shown)) > after:
            return found
        minute, shown = minute + MINUTE, there


@given(ZONES, INSTANTS, TIMES, st.data())
def test_a_time_of_day_is_the_next_moment_at_which_clocks_show_it(
    name: str, after: datetime, wanted: time, data: st.DataObject
) -> None:
    zone = ZoneInfo(name)
    days = days_of_changes(zone, after.year)
    if days:
        after = datetime.combine(data.draw(st.sampled_from(days)), after.time(), zone).astimezone(UTC)
    found = next_time_of_day(wanted, after, zone)
    assert found == as_shown(wanted, zone, after)
    assert timedelta(0) < found - after <= timedelta(hours=26)


@pytest.mark.parametrize(
    ("after", "wanted", "found"),
    [
        ("2027-03-27T23:00+01:00", "07:00", "2027-03-28T07:00+02:00"),
        ("2027-03-28T01:30+01:00", "07:00", "2027-03-28T07:00+02:00"),
        ("2027-03-28T01:30+01:00", "02:30", "2027-03-28T03:30+02:00"),  # never shown
        ("2027-03-28T03:30+02:00", "02:30", "2027-03-29T02:30+02:00"),
        ("2027-10-31T00:00+02:00", "07:00", "2027-10-31T07:00+01:00"),
        ("2027-10-31T02:10+02:00", "07:00", "2027-10-31T07:00+01:00"),
        ("2027-10-31T02:10+02:00", "02:30", "2027-10-31T02:30+02:00"),  # shown twice
        ("2027-10-31T02:40+02:00", "02:30", "2027-10-31T02:30+01:00"),
        ("2027-10-31T02:40+01:00", "02:30", "2027-11-01T02:30+01:00"),
    ],
)
def test_nights_on_which_clocks_are_changed(after: str, wanted: str, found: str) -> None:
    started, ends = datetime.fromisoformat(after).astimezone(UTC), datetime.fromisoformat(found)
    with machine_in("Europe/Berlin"):
        assert from_until(wanted, None, started).ends == ends


@given(ZONES, INSTANTS, TIMES)
def test_until_goes_by_the_zone_that_this_machine_is_in(name: str, started: datetime, wanted: time) -> None:
    with machine_in(name):
        try:
            deadline = from_until(f"{wanted:%H:%M}", "1s", started)
        except InputError:
            assert next_time_of_day(wanted, started, ZoneInfo(name)) - started <= timedelta(seconds=1)
            return
        shown = deadline.shown_here
    assert deadline.ends == next_time_of_day(wanted, started, ZoneInfo(name))
    assert shown.startswith(f" ({deadline.ends.astimezone(ZoneInfo(name)):%H:%M} ")
    assert deadline.ends.tzinfo is UTC


@given(INSTANTS, TIMES, ZONES, st.integers(0, 3600))
def test_who_begins_later_ends_no_earlier(started: datetime, wanted: time, name: str, seconds: int) -> None:
    zone, later = ZoneInfo(name), started + timedelta(seconds=seconds)
    first = next_time_of_day(wanted, started, zone)
    assert next_time_of_day(wanted, later, zone) >= first
    assert later >= first or next_time_of_day(wanted, later, zone) == first


@given(INSTANTS, st.integers(1, 1_000 * 86_400), st.integers(1, 86_400) | st.none())
def test_a_budget_is_time_elapsed_and_keeps_its_reserve(started: datetime, seconds: int, reserve: int | None) -> None:
    kept = None if reserve is None else f"{reserve}s"
    try:
        deadline = from_budget(f"{seconds}s", kept, started)
    except InputError:
        assert seconds <= (30 if reserve is None else reserve)
        return
    assert deadline.ends - started == timedelta(seconds=seconds)
    assert started < deadline.training_ends < deadline.ends
    assert not deadline.is_time_of_day


@given(st.floats(0, 999 * 86_400))
def test_a_shown_duration_is_understood_and_loses_half_of_its_last_unit_at_most(seconds: float) -> None:
    shown = format_duration(seconds)
    if round(seconds) == 0:
        assert shown == "0s"
        return
    step = 1 if round(seconds) < 3600 else 60
    assert -0.5 <= seconds - parse_duration(shown) < step
    assert format_duration(parse_duration(shown)) == shown


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from("dhms")), min_size=1, max_size=6))
def test_durations_add_up(parts: list[tuple[int, str]]) -> None:
    seconds = sum(number * {"d": 86_400, "h": 3_600, "m": 60, "s": 1}[unit] for number, unit in parts)
    assume(0 < seconds <= 1_000 * 86_400)
    assert parse_duration(" ".join(f"{number}{unit}" for number, unit in parts)) == seconds


@given(st.text(max_size=12) | st.text("0123456789.dhms", max_size=12))
def test_any_text_is_a_duration_or_is_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except RecipeError:
        return
    assert 0 < seconds <= 1_000 * 86_400


@given(st.text(max_size=6) | st.text("0123456789:", max_size=6))
def test_any_text_is_a_time_of_day_or_is_refused(text: str) -> None:
    started = datetime(2026, 3, 1, 21, 30, 30, tzinfo=UTC)
    try:
        assert from_until(text, "1s", started).ends > started
    except InputError as error:
        assert "is no time of day" in str(error)  # noqa: PT017
