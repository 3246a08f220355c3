"""Rules that judge a trial from its own history."""

from __future__ import annotations

import math

import pytest

from search_spaces.schema import Recipe
from trials.config import EvaluationSettings
from trials.records.trial_dir import EvalPoint
from trials.state import TrialState
from trials.training.early_stopping import divergence, patience_begins, patience_exhausted


def _points(losses: list[float]) -> list[EvalPoint]:
    return [
        EvalPoint(step=i, tokens_seen=i, eval_loss=loss, best_eval_loss=min(losses[: i + 1]), seconds=float(i))
        for i, loss in enumerate(losses)
    ]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 4.01])
def test_no_number_and_far_above_the_base_are_divergence(loss: float) -> None:
    ending = divergence(loss, base_loss=2.0, factor=2.0)
    assert ending is not None
    assert ending.kind is TrialState.DIVERGED


@pytest.mark.parametrize("loss", [0.0, 2.0, 4.0])
def test_up_to_the_factor_is_none(loss: float) -> None:
    assert divergence(loss, base_loss=2.0, factor=2.0) is None


def test_the_reason_says_the_figures() -> None:
    ending = divergence(9.0, 2.0, 2.0)
    assert ending is not None
    assert ending.reason == "eval loss 9.0000 is above 2 times the base model's 2.0000"


@pytest.mark.parametrize(
    ("losses", "patience", "least", "ends"),
    [
        ([3, 2, 2.1, 2.2], 2, 0.0, True),
        ([3, 2, 2.1, 2.2], 3, 0.0, False),
        ([3, 2, 2.1, 1.9], 2, 0.0, False),
        ([3, 2, 2.0, 2.0], 2, 0.0, True),  # as good as before is no improvement
        ([3, 2, 1.95, 1.93], 2, 0.1, True),
        ([3, 2, 1.95, 1.85], 2, 0.1, False),
        ([3, 4], 2, 0.0, False),  # too short a history
        ([3, 4, 5], 2, 0.0, True),
        ([], 1, 0.0, False),
    ],
)
def test_patience_counts_evaluations_without_improvement(
    losses: list[float], patience: int, least: float, ends: bool
) -> None:
    ending = patience_exhausted(_points(losses), EvaluationSettings(patience=patience, min_improvement=least))
    assert (ending is not None) == ends
    assert ending is None or ending.kind is TrialState.EARLY_STOPPED


def test_without_patience_no_trial_ends() -> None:
    assert patience_exhausted(_points([2, 3, 4, 5, 6]), EvaluationSettings()) is None


def test_where_the_rate_falls_the_second_half_counts_only(small_recipe: Recipe) -> None:
    points, settings = _points([2, 3, 3, 3]), EvaluationSettings(patience=3)
    hyperparameters = small_recipe.hyperparameters
    steady = hyperparameters.model_copy(update={"scheduler": "constant"})
    open_ended = hyperparameters.model_copy(update={"scheduler": "inverse_sqrt"})
    falling = hyperparameters.model_copy(update={"scheduler": "cosine"})
    assert points[1].step == 1  # the first of the three without improvement
    assert patience_exhausted(points, settings, patience_begins(steady, 20)) is not None
    assert patience_exhausted(points, settings, patience_begins(open_ended, 20)) is not None
    assert patience_exhausted(points, settings, patience_begins(falling, 3)) is not None
    assert patience_exhausted(points, settings, patience_begins(falling, 4)) is None
