"""The recipe for the whole time: how long it may be, by the speed of a trial that was really trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.head_to_head.repeated import SPARE_SHARE, Speed, length_setting, measured_speed, tokens_that_fit
from tests.support.fake_search import point
from trials.config import EvaluationSettings, Hyperparameters
from trials.records.trial_dir import TrialRecord

SPEED = Speed(start_seconds=10, tokens_per_second=1000, evaluation_seconds=2, evaluations=9)
BUDGET = 100 / (1 - SPARE_SHARE)


def test_speed_of_a_trained_trial_explains_its_time(small_trial: TrialRecord) -> None:
    last = small_trial.points[-1]
    speed = measured_speed(small_trial, last.seconds + 5, full_tokens=last.tokens_seen)
    assert speed is not None
    assert speed.start_seconds == pytest.approx(5)
    assert speed.evaluations == len(small_trial.points) == 3
    explained = last.tokens_seen / speed.tokens_per_second + 3 * speed.evaluation_seconds
    assert explained == pytest.approx(last.seconds)


def test_a_trial_of_which_a_third_was_trained_is_measured_as_a_whole_one(small_trial: TrialRecord) -> None:
    first = small_trial.points[0]
    begun = replace(small_trial, points=(first,))
    speed = measured_speed(begun, first.seconds, full_tokens=3 * first.tokens_seen)
    assert speed is not None
    assert speed.evaluations == pytest.approx(3)


def test_without_an_evaluation_there_is_no_speed(small_trial: TrialRecord) -> None:
    assert measured_speed(replace(small_trial, points=()), 10, 3000) is None
    assert measured_speed(replace(small_trial, points=(point(3.0, 0),)), 10, 3000) is None


def test_what_fits_leaves_time_for_start_and_evaluations() -> None:
    assert tokens_that_fit(SPEED, BUDGET, 3000, EvaluationSettings()) == pytest.approx((100 - 10 - 18) * 1000, abs=1)


def test_evaluations_by_rows_grow_with_the_trial() -> None:
    settings = EvaluationSettings(every_rows=100)
    tokens = tokens_that_fit(SPEED, BUDGET, 9000, settings)
    assert 10 + tokens / 1000 + 2 * 9 * tokens / 9000 == pytest.approx(100, abs=0.1)


def test_a_recipe_that_does_not_fit_is_planned_shorter() -> None:
    assert tokens_that_fit(SPEED, BUDGET, 720_000, EvaluationSettings()) < 720_000
    assert tokens_that_fit(SPEED, 1, 720_000, EvaluationSettings()) == 1


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({"epochs": 0.5}, {"epochs": 1.25}),
        ({"train_tokens": 101}, {"train_tokens": 252}),
        ({"rows_seen": 4}, {"rows_seen": 10}),
    ],
)
def test_the_recipe_keeps_its_own_measure_of_length(length: dict[str, float], expected: dict[str, float]) -> None:
    assert length_setting(Hyperparameters(**length), 2.5) == expected  # type: ignore[arg-type]
