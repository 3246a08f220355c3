"""Schedulers that stop trials: the rules of those whose names they have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from orchestrator.scheduling.stopping import Asha, MedianRule, NoPruning
from orchestrator.scheduling.types import Idle, Resume, StartNew
from tests.support.views import BUDGET, EVALUATIONS, view
from trials.state import TrialState


def test_without_pruning_every_trial_goes_on_and_new_ones_start() -> None:
    scheduler = NoPruning()
    for number in range(1, 8):
        scheduler.update(view(number, float(number), float(number)), None)
    assert scheduler.should_continue("0007", BUDGET).goes_on
    assert isinstance(scheduler.choose_next(BUDGET), StartNew)
    assert isinstance(scheduler.choose_next(replace(BUDGET, may_start=False)), Idle)
    assert scheduler.evictable(0, BUDGET) == {}


def test_a_trial_that_was_cut_off_is_resumed_before_anything_starts() -> None:
    scheduler = NoPruning()
    scheduler.update(view(1, 2.0, state=TrialState.PAUSED), None)
    assert scheduler.choose_next(BUDGET) == Resume("0001")
    scheduler.update(view(1, 2.0), None)
    assert isinstance(scheduler.choose_next(BUDGET), StartNew)


def test_the_median_rule_stops_the_worse_half_once_five_others_are_known() -> None:
    scheduler = MedianRule()
    for number in range(1, 6):
        scheduler.update(view(number, 1.0 + number), None)
    assert scheduler.should_continue("0005", BUDGET).goes_on  # four others
    scheduler.update(view(6, 3.9), None)
    scheduler.update(view(7, 4.1), None)
    assert scheduler.should_continue("0006", BUDGET).goes_on
    stopped = scheduler.should_continue("0007", BUDGET)
    assert not stopped.goes_on
    assert "above the median of 6 trials at 11% of a full trial" in stopped.reason


def test_a_stopped_trial_is_not_resumed_and_may_be_ended() -> None:
    scheduler = Asha(3)
    for number, loss in enumerate((1.0, 2.0, 3.0), 1):
        scheduler.update(view(number, loss), None)
    reason = scheduler.should_continue("0003", BUDGET).reason
    assert "best 1/3 of 3 trials at 11%" in reason
    assert scheduler.evictable(30, BUDGET) == {}  # it runs until it has left
    scheduler.update(view(3, 3.0, state=TrialState.PAUSED), None)
    assert scheduler.evictable(30, BUDGET) == {"0003": reason}
    assert isinstance(scheduler.choose_next(BUDGET), StartNew)


def test_between_two_rungs_no_trial_is_stopped() -> None:
    scheduler = Asha(3)
    for number in range(1, 6):
        scheduler.update(view(number, 1.0, 1.0, 1.0), None)
    scheduler.update(view(6, 9.0, 9.0), None)
    assert scheduler.should_continue("0006", BUDGET).goes_on  # the rungs are the first and the third evaluation
    scheduler.update(view(6, 9.0, 9.0, 9.0), None)
    assert not scheduler.should_continue("0006", BUDGET).goes_on


class _RayTrial:
    """What ASHAScheduler reads of a trial."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id, self.status = trial_id, "RUNNING"


@pytest.mark.parametrize("seed", range(5))
def test_asha_stops_what_ray_s_stops(seed: int) -> None:
    import random

    lot = random.Random(seed)
    ray = ASHAScheduler(metric="loss", mode="min", max_t=EVALUATIONS, grace_period=1, reduction_factor=3)
    ours, running = Asha(3), {}
    for number in range(1, 31):
        trial = _RayTrial(f"{number:04d}")
        ray.on_trial_add(None, trial)
        running[number] = (trial, [])
        while running and (number == 30 or lot.random() < 0.8):
            chosen = lot.choice(sorted(running))
            trial, losses = running[chosen]
            losses.append(min([*losses, lot.uniform(1, 2)]))
            ours.update(view(chosen, *losses), None)
            decision = ray.on_trial_result(None, trial, {"training_iteration": len(losses), "loss": losses[-1]})
            if len(losses) < EVALUATIONS:
                assert ours.should_continue(trial.trial_id, BUDGET).goes_on == (decision == TrialScheduler.CONTINUE)
            if decision != TrialScheduler.CONTINUE or len(losses) == EVALUATIONS:
                state = TrialState.FINISHED if len(losses) == EVALUATIONS else TrialState.PAUSED
                ours.update(view(chosen, *losses, state=state), None)
                del running[chosen]
