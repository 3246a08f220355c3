"""Values of paused trials: the order in which they are resumed and given up."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.sampling.distributions import distributions
from orchestrator.scheduling.acquisition import AcquisitionRanker
from orchestrator.scheduling.types import BudgetState
from orchestrator.surrogate.model import Surrogate
from orchestrator.surrogate.trial_view import TrialView
from search_spaces.schema import Range
from trials.state import TrialState

SPACE = distributions({"learning_rate": Range(low=1e-5, high=1e-3, log=True)})
BUDGET = BudgetState(
    seconds_left=900.0, seconds=1000.0, slots=1, seconds_full=100.0, evaluation_point=0.1, seconds_start=1.0
)


def view(trial_id: str, rate: float, *losses: float, state: TrialState = TrialState.PAUSED) -> TrialView:
    points = tuple((0.1 * number, loss) for number, loss in enumerate(losses, 1))
    return TrialView(trial_id, {"learning_rate": rate}, points, 1.0, state, is_start=False, noise=0.0)


@pytest.fixture
def ranker() -> AcquisitionRanker:
    """Three paused trials, one good, two bad."""
    surrogate = Surrogate(SPACE, None)
    surrogate.curve_model.base_loss = 4.0
    ranker = AcquisitionRanker(surrogate, np.random.default_rng(0))
    for each in (view("0001", 1e-5, 3.9, 3.8), view("0002", 3e-4, 2.0, 1.5), view("0003", 1e-3, 3.5, 3.6)):
        ranker.observe(each, surrogate.observe(each))
    return ranker


def test_the_most_promising_comes_first(ranker: AcquisitionRanker) -> None:
    best = ranker.best_paused(BUDGET)
    assert best is not None
    assert best[0] == "0002" == ranker.paused(BUDGET)[0]
    assert np.isfinite(best[1])


def test_what_runs_or_is_over_is_no_longer_paused(ranker: AcquisitionRanker) -> None:
    assert sorted(ranker.paused(BUDGET)) == ["0001", "0002", "0003"]
    for each in (
        view("0002", 3e-4, 2.0, 1.5, state=TrialState.RUNNING),
        view("0003", 1e-3, 3.5, 3.6, state=TrialState.FINISHED),
    ):
        ranker.observe(each, None)
    assert ranker.paused(BUDGET) == ["0001"]


def test_of_equal_values_the_first_id_counts() -> None:
    surrogate = Surrogate(SPACE, None)
    ranker = AcquisitionRanker(surrogate, np.random.default_rng(0))
    for name in ("0003", "0001", "0002"):  # nothing is known of any
        each = view(name, 1e-4)
        ranker.observe(each, surrogate.observe(each))
    assert ranker.best_paused(BUDGET) == ("0001", -np.inf)
    assert ranker.paused(BUDGET) == ["0001", "0002", "0003"]
