"""The clock of a search: elapsed time counts, and jumps of the wall clock only where a time of day was asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.state.clock import SteadyClock, steady_seconds

START = datetime(2026, 3, 1, 21, 30, tzinfo=UTC)


class Machine:
    """Two clocks, moved by hand: the wall clock and the one that only goes on."""

    def __init__(self) -> None:
        self.wall_seconds = START.timestamp()
        self.steady_seconds = 1234.5

    def pass_by(self, seconds: float) -> None:
        self.wall_seconds += seconds
        self.steady_seconds += seconds

    def clock(self, *, is_time_of_day: bool = False) -> SteadyClock:
        return SteadyClock(
            is_time_of_day=is_time_of_day, wall=lambda: self.wall_seconds, steady=lambda: self.steady_seconds
        )


@pytest.mark.parametrize("jump", [-5 * 3600.0, 7200.0])
def test_a_budget_is_elapsed_time(jump: float) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.pass_by(60)
    machine.wall_seconds += jump
    machine.pass_by(60)
    assert clock() == START + timedelta(seconds=120)
    assert clock.elapsed() == 120


@pytest.mark.parametrize("jump", [-5 * 3600.0, 7200.0])
def test_a_time_of_day_follows_a_corrected_wall_clock(jump: float) -> None:
    machine = Machine()
    clock = machine.clock(is_time_of_day=True)
    machine.pass_by(60)
    machine.wall_seconds += jump
    assert clock() == START + timedelta(seconds=60 + jump)
    machine.pass_by(30)
    assert clock() == START + timedelta(seconds=90 + jump)
    assert clock.elapsed() == 90


def test_small_steps_of_a_time_server_are_no_jumps() -> None:
    machine = Machine()
    clock = machine.clock(is_time_of_day=True)
    machine.pass_by(60)
    machine.wall_seconds -= 1.5
    assert clock() == START + timedelta(seconds=60)


def test_it_shows_the_present_time() -> None:
    clock = SteadyClock()
    assert abs((clock() - datetime.now(UTC)).total_seconds()) < 1
    before = steady_seconds()
    assert clock() <= clock()
    assert steady_seconds() >= before
