from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.state.deadline import from_budget, from_until
from trials.errors import InputError

START = datetime(2026, 3, 1, 21, 30, tzinfo=UTC)


def test_budget_counts_from_the_start_of_the_command() -> None:
    deadline = from_budget("9h", "15m", START)
    assert deadline.ends == START + timedelta(hours=9)
    assert deadline.training_ends == START + timedelta(hours=8, minutes=45)
    assert deadline.training_seconds_left(START + timedelta(hours=8)) == 45 * 60


def test_until_is_the_next_such_time_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for hour in range(24):
        deadline = from_until(f"{hour:02d}:15", "1m", START)
        local = deadline.ends.astimezone()
        assert (local.hour, local.minute) == (hour, 15)
        assert timedelta(0) < deadline.ends - START <= timedelta(days=1)


@pytest.mark.parametrize("text", ["7", "24:00", "07:60", "seven", "07:00:00"])
def test_until_refuses_what_is_no_time_of_day(text: str) -> None:
    with pytest.raises(InputError, match="is no time of day"):
        from_until(text, "1m", START)


def test_a_budget_within_the_reserve_is_refused() -> None:
    with pytest.raises(InputError, match=r"a budget of 5m00s is too short: search\.reserve keeps 5m00s"):
        from_budget("5m", "5m", START)


def test_without_a_reserve_a_first_guess_is_kept_until_it_is_measured() -> None:
    deadline = from_budget("9h", None, START)
    assert deadline.reserve_seconds == 600
    measured = deadline.with_reserve(95.5)
    assert measured.training_ends == deadline.ends - timedelta(seconds=95.5)
    assert (measured.started, measured.ends) == (deadline.started, deadline.ends)


def test_a_deadline_knows_whether_it_is_a_time_of_day() -> None:
    assert from_until("07:00", None, START).is_time_of_day
    assert from_until("07:00", None, START).with_reserve(10).is_time_of_day
    assert not from_budget("9h", None, START).is_time_of_day
