"""Trials as samplers see them that know finished ones only: all at one fraction of a full trial."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState as OptunaState

from orchestrator.sampling.distributions import distributions
from orchestrator.sampling.finished_trials import FinishedTrials
from search_spaces.schema import Range
from tests.support.views import view
from trials.state import TrialState

SPACE = distributions({"learning_rate": Range(low=1e-5, high=1e-2, log=True)})
WHOLE = tuple(3.0 - 0.1 * k for k in range(9))


def finished(*views: object) -> FinishedTrials:
    trials = FinishedTrials(SPACE)
    for each in views:
        trials.observe(each)  # type: ignore[arg-type]
    return trials


def test_the_fraction_is_what_one_trial_more_than_dimensions_has_reached() -> None:
    one = finished(view(1, *WHOLE, state=TrialState.FINISHED))
    assert one.common_fraction == 1.0  # fewer trials than that
    three = finished(view(1, *WHOLE, state=TrialState.FINISHED), view(2, 2.0, 1.9, 1.8), view(3, 2.5))
    assert three.common_fraction == pytest.approx(3 / 9, abs=0.01)
    assert finished(view(1)).common_fraction == 0.0


def test_all_trials_that_have_reached_it_are_complete_with_their_loss_there() -> None:
    trials = finished(
        view(1, *WHOLE, state=TrialState.FINISHED),
        view(2, 2.0, 1.9, 1.8, state=TrialState.PAUSED),
        view(3, 2.5, state=TrialState.PRUNED),
        view(4, 2.6),
        view(5),
    )
    base, first, second, third, fourth, fifth = trials.frozen(6)
    assert base.state is OptunaState.FAIL
    assert (first.state, first.value) == (OptunaState.COMPLETE, pytest.approx(WHOLE[2]))
    assert (second.state, second.value) == (OptunaState.COMPLETE, 1.8)
    assert (third.state, third.value) == (OptunaState.PRUNED, 2.5)
    assert fourth.state is OptunaState.RUNNING
    assert fifth.state is OptunaState.RUNNING
    assert third.params == {"learning_rate": 1e-4}


def test_a_complete_trial_that_is_shorter_than_others_counts_with_its_last_loss() -> None:
    short = view(1, 2.0, 1.5, state=TrialState.FINISHED)
    trials = finished(short, view(2, *WHOLE, state=TrialState.FINISHED))
    assert trials.common_fraction == 1.0
    assert trials.frozen(3)[1].value == 1.5


def test_what_cannot_be_trained_counts_as_bad_as_the_worst_and_failures_as_nothing() -> None:
    trials = finished(
        view(1, *WHOLE, state=TrialState.FINISHED),
        view(2, 4.0, *WHOLE[1:], state=TrialState.FINISHED),
        view(3, state=TrialState.DIVERGED),
        view(4, state=TrialState.OUT_OF_MEMORY),
        view(5, 1.0, state=TrialState.FAILED),
    )
    *_, diverged, too_large, failed = trials.frozen(6)
    assert diverged.state is too_large.state is OptunaState.COMPLETE
    assert diverged.value == too_large.value == pytest.approx(WHOLE[-1])
    assert failed.state is OptunaState.FAIL
