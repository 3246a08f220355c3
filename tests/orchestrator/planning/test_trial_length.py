"""The length of a full trial: the recipe's where enough such trials fit, else as much as gives each its share."""

from __future__ import annotations

import pytest

from orchestrator.planning.trial_length import length_in_words, shortened, shortened_length, shortened_trial
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from trials.config import Hyperparameters


def test_where_enough_full_trials_fit_they_stay_full() -> None:
    assert shortened_length(100_000, 0.01, 6_000, 1, 6) == 100_000
    assert shortened_length(100_000, 0.01, 50_000, 1, 6) == 100_000


def test_where_they_do_not_fit_they_are_shortened_to_what_does() -> None:
    # 50 hours for all of it, nine to spend: the UltraChat guide's author cut by hand, to a twentieth
    full = 100_000_000
    short = shortened_length(full, 50 * 3600 / full, 9 * 3600, 1, 6)
    assert short / full == pytest.approx(9 / 50 / 6, rel=1e-3)
    assert 6 * short * 50 * 3600 / full <= 9 * 3600


def test_trials_side_by_side_share_the_night_but_none_takes_more_than_half_of_it() -> None:
    assert shortened_length(100_000, 0.01, 600, 2, 6) == 20_000
    assert shortened_length(100_000, 0.01, 600, 8, 6) == 30_000


def test_a_shortened_trial_has_as_many_evaluations_whose_time_it_needs_as_well() -> None:
    assert shortened_length(100_000, 0.01, 600, 1, 6, evaluation_seconds=25.0) == 7_500
    # They take most of it: a third is for training, and fewer than six fit.
    assert shortened_length(100_000, 0.01, 600, 1, 6, evaluation_seconds=90.0) == 3_333
    assert shortened_length(100_000, 0.01, 6_300, 1, 6, evaluation_seconds=50.0) == 100_000


def test_without_a_number_nothing_is_shortened() -> None:
    assert shortened_length(100_000, 0.01, 10, 1, None) == 100_000


def test_at_least_one_token_is_left() -> None:
    assert shortened_length(100_000, 0.01, -5, 1, 6) == 1


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"epochs": 2.0}, {"epochs": 0.5}),
        ({"train_tokens": 1001}, {"train_tokens": 250}),
        ({"rows_seen": 2}, {"rows_seen": 1}),
    ],
)
def test_a_shortened_length_is_given_in_the_same_measure(given: dict[str, float], kept: dict[str, float]) -> None:
    short = shortened(Hyperparameters.model_validate({"learning_rate": 1e-3, **given}), 0.25)
    assert short == Hyperparameters.model_validate({"learning_rate": 1e-3, **kept})


def test_a_shortened_trial_is_evaluated_as_often(small_recipe: Recipe) -> None:
    often = load_recipe("demo", ["every_rows=400"], environ={}).recipe.trial_config({})
    assert shortened_trial(often, 0.1).evaluation.every_rows == 40
    config = small_recipe.trial_config({})
    assert shortened_trial(config, 0.1).evaluation == config.evaluation
    assert shortened_trial(config, 0.1).hyperparameters.train_tokens == 300
    assert shortened_trial(config, 1.0) == config


def test_the_length_is_said_in_words() -> None:
    assert length_in_words(1000, 1000, 2000) == "1,000 tokens, 0.5 of the training data"
    said = length_in_words(1_000_000, 50_000, 1_000_000)
    assert said.startswith(
        "50,000 tokens in this search, 0.05 of the training data: 0.05 of the 1,000,000 that the recipe asks"
    )
