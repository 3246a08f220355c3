"""How long configurations take that were not tried, learned from those that were."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.sampling.distributions import distributions
from orchestrator.scheduling.acquisition import AcquisitionRanker
from orchestrator.surrogate.encoding import SpaceEncoder
from orchestrator.surrogate.model import Surrogate
from orchestrator.surrogate.pace import PaceModel
from orchestrator.surrogate.trial_view import TrialView
from search_spaces.schema import Choices, Range
from tests.support.views import BUDGET
from trials.state import TrialState

SPACE = distributions(
    {"learning_rate": Range(low=1e-5, high=1e-2, log=True), "lora_rank": Choices(choices=(4, 8, 16, 32))}
)


def test_without_trials_all_are_equally_fast() -> None:
    assert PaceModel().predict(np.random.default_rng(0).random((3, 2))).tolist() == [1.0] * 3


def test_what_is_slow_is_found_and_an_extreme_is_bounded() -> None:
    x = np.random.default_rng(0).random((40, 2))
    model = PaceModel()
    model.fit(x, list(0.8 * 2.0 ** x[:, 1]))
    found = model.predict(np.array([[0.5, 0.0], [0.5, 1.0], [0.5, 100.0]]))
    assert found[:2] == pytest.approx([0.8, 1.6], rel=0.1)
    assert found[2] == pytest.approx(4.0)


def test_of_two_alike_the_one_that_takes_half_the_time_is_worth_more() -> None:
    surrogate = Surrogate(SPACE)
    ranker = AcquisitionRanker(surrogate, np.random.default_rng(0))
    for number, pace in enumerate((1.0, 2.0, 0.5), 1):
        values = {"learning_rate": 1e-4, "lora_rank": 8}
        view = TrialView(f"{number:04d}", values, ((1 / 9, 2.0),), 1.0, TrialState.PAUSED, False, 0.0, pace)
        ranker.observe(view, surrogate.observe(view))
    assert ranker.paused(BUDGET) == ["0003", "0001", "0002"]


def test_a_configuration_that_is_shorter_is_predicted_at_its_own_end() -> None:
    surrogate = Surrogate(SPACE, end_of=lambda values: 0.25 if values["lora_rank"] == 4 else 1.0)
    draws = surrogate.encoder.sample(50, np.random.default_rng(0))
    ends = surrogate.ends(draws)
    ranks = [surrogate.encoder.decode(draw)["lora_rank"] for draw in draws]
    assert ends.tolist() == [0.25 if rank == 4 else 1.0 for rank in ranks]
    assert SpaceEncoder(SPACE).columns("lora_rank") == [1]
    assert SpaceEncoder(SPACE).columns("epochs") == []
