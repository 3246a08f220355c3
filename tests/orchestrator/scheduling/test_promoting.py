"""Schedulers that pause at rungs: the best third of a rung is promoted, brackets begin at different rungs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from orchestrator.scheduling.promoting import Hyperband
from orchestrator.scheduling.types import Idle, Resume, StartNew
from tests.support.views import BUDGET, view
from trials.state import TrialState

NOTHING_NEW = replace(BUDGET, may_start=False)


def asha() -> Hyperband:
    return Hyperband(3, most=1)


def pause(scheduler: Hyperband, number: int, *losses: float) -> None:
    scheduler.update(view(number, *losses, state=TrialState.PAUSED), None)


def test_trials_pause_at_a_rung_and_the_best_third_is_promoted() -> None:
    scheduler = asha()
    for number, loss in enumerate((3.0, 1.0, 2.0), 1):
        scheduler.update(view(number, loss), None)
        assert not scheduler.should_continue(f"{number:04d}", BUDGET).goes_on or number == 3
        pause(scheduler, number, loss)
    assert scheduler.choose_next(BUDGET) == Resume("0002")
    scheduler.update(view(2, 1.0), None)  # it runs again
    assert isinstance(scheduler.choose_next(BUDGET), StartNew)
    scheduler.update(view(2, 1.0, 0.9), None)
    assert scheduler.should_continue("0002", BUDGET).goes_on  # between two rungs
    scheduler.update(view(2, 1.0, 0.9, 0.8), None)
    assert not scheduler.should_continue("0002", BUDGET).goes_on  # alone at the second


def test_the_highest_rung_goes_first() -> None:
    scheduler = asha()
    for number in range(1, 10):
        pause(scheduler, number, float(number), *((number + 0.5,) * 2 if number <= 3 else ()))
    pause(scheduler, 10, 0.5)
    assert scheduler.choose_next(BUDGET) == Resume("0001")  # the best of the three that stand at the second rung


def test_what_was_cut_off_between_rungs_is_resumed_at_once() -> None:
    scheduler = asha()
    pause(scheduler, 1, 5.0)
    pause(scheduler, 2, 4.0, 4.0)
    assert scheduler.choose_next(BUDGET) == Resume("0002")


def test_where_nothing_may_start_the_furthest_and_best_goes_on() -> None:
    scheduler = asha()
    assert isinstance(scheduler.choose_next(NOTHING_NEW), Idle)
    pause(scheduler, 1, 1.0)
    pause(scheduler, 2, 2.0, 2.0, 2.0)
    assert scheduler.choose_next(NOTHING_NEW) == Resume("0002")
    assert list(scheduler.evictable(1, BUDGET)) == ["0001"]


def test_hyperband_divides_trials_among_brackets_that_begin_later() -> None:
    scheduler = Hyperband(3)
    scheduler.choose_next(BUDGET)
    goes_on_at_first = []
    for number in range(1, 61):
        scheduler.update(view(number, float(number)), None)
        goes_on_at_first.append(scheduler.should_continue(f"{number:04d}", BUDGET).goes_on)
    # Of nine evaluations there are rungs at the first and the third. Trials of the second bracket skip the first one,
    # and of the first bracket, whose losses rise, only what was among the best at its own time goes on.
    found = Counter(goes_on_at_first)
    assert found[True] >= 15
    assert found[False] >= 30


def test_the_same_is_decided_after_a_restart() -> None:
    before, after = Hyperband(3), Hyperband(3)
    losses = np.random.default_rng(0).uniform(1, 2, 20)
    before.choose_next(BUDGET)
    for number, loss in enumerate(losses, 1):
        pause(before, number, float(loss))
    for number, loss in enumerate(losses, 1):
        pause(after, number, float(loss))
    assert before.choose_next(BUDGET) == after.choose_next(BUDGET)
