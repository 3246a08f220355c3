"""What holds under every scheduler: one trial is complete by the end, and what has to be completed goes first."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from orchestrator.scheduling.types import Resume
from search_spaces.schema import Range, SearchSettings
from tests.support.policies import PolicyWithProposer
from tests.support.views import BUDGET, SHORT, view
from trials.state import TrialState

SPACE = {"learning_rate": Range(low=1e-5, high=1e-2, log=True)}
SCHEDULERS = get_args(SearchSettings.model_fields["scheduler"].annotation)
LATE = replace(BUDGET, seconds_left=72.0)
"""Two thirds of a full trial are left, and a little more."""


def policy(scheduler: str = "freeze_thaw") -> PolicyWithProposer:
    return PolicyWithProposer(SPACE, SearchSettings(scheduler=scheduler))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_last_that_can_be_completed_is_under_every_scheduler(scheduler: str) -> None:
    found = policy(scheduler)
    found.update(view(1, 1.0, 0.9, 0.8, state=TrialState.PAUSED, rate=3e-4))
    found.update(view(2, 0.95, rate=1e-3))
    decision = found.should_continue("0002", LATE)
    assert not decision.goes_on
    assert "0001 has to be completed" in decision.reason
    assert found.choose_next(LATE) == Resume("0001")


def test_a_trial_that_ended_short_of_its_tokens_is_complete() -> None:
    found = policy()
    found.update(view(1, *[2.0 - 0.1 * k for k in range(9)], state=TrialState.FINISHED, rate=3e-5))
    assert found.surrogate.views["0001"].fraction == pytest.approx(1 - SHORT)
    assert found.surrogate.has_complete
    found.update(view(2, 1.0, 0.9, 0.8, state=TrialState.PAUSED, rate=3e-4))
    found.update(view(3, 0.7, rate=1e-3))
    assert "has to be completed" not in found.should_continue("0003", LATE).reason


def test_while_one_is_completed_others_are_decided_about_as_ever() -> None:
    found = policy()
    found.update(view(1, 1.0, 0.9, 0.8, rate=3e-4))  # it runs, and has to be completed
    found.update(view(2, 0.9, 0.8, state=TrialState.PAUSED, rate=4e-4))
    found.update(view(3, 3.0, 2.9, 2.8, rate=1e-2))
    two = replace(LATE, slots=2, seconds=300.0)
    assert found.should_continue("0001", two).reason == "it's the one to be completed"
    assert not found.should_continue("0003", two).goes_on  # the paused one looks more promising


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_starting_point_is_completed_in_the_second_half_and_never_given_up(scheduler: str) -> None:
    found = policy(scheduler)
    for number in range(1, 9):
        found.update(view(number, *[1.0 - 0.01 * k for k in range(9)], state=TrialState.FINISHED, rate=3e-4))
    found.update(view(9, 9.0, rate=1e-5, is_start=True))
    found.should_continue("0009", BUDGET)
    found.update(view(9, 9.0, rate=1e-5, is_start=True, state=TrialState.PAUSED))
    assert "0009" not in found.evictable(0, BUDGET)
    assert found.choose_next(replace(BUDGET, seconds_left=700.0)) == Resume("0009")
