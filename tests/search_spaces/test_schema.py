"""What a recipe may say: dimensions that fit their hyperparameter, starting points that lie inside."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from search_spaces.schema import Recipe, SearchSettings, is_integer


def test_auto_is_the_sampler_that_was_best() -> None:
    assert SearchSettings(sampler="auto").sampler == "freeze_thaw"


def _recipe(small_recipe: Recipe, **change: Any) -> Recipe:
    content = small_recipe.model_dump(mode="python")
    return Recipe.model_validate({**content, "space": {}, "start": {}, **change})


@pytest.mark.parametrize(
    "dimension",
    [
        {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}},
        {"lora_rank": {"low": 4, "high": 64}},
        {"lora_rank": {"choices": [4, 64]}},
        {"use_dora": {"choices": [True, False]}},
        {"target_modules": {"choices": [["q_proj"], ["q_proj", "v_proj"]]}},
        {"scheduler": {"choices": ["cosine", "linear"]}},
        {"train_tokens": {"low": 1000, "high": 2000}},
    ],
)
def test_a_dimension_that_fits(small_recipe: Recipe, dimension: dict[str, Any]) -> None:
    assert set(_recipe(small_recipe, space=dimension).space) == set(dimension)


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({"learning_rate": {"low": 1e-2, "high": 1e-5}}, "range upside down: low is 0.01 and high is 1e-05"),
        ({"learning_rate": {"low": 1e-2, "high": 1e-2}}, "range upside down"),
        ({"learning_rate": {"low": 0.0, "high": 1.0, "log": True}}, "a logarithmic range needs low above 0"),
        ({"learning_rate": {"low": 0.5, "high": 2.0}}, "learning_rate=2.0 is not allowed"),
        ({"lora_rank": {"low": 0, "high": 8}}, "lora_rank=0 is not allowed"),
        ({"lora_rank": {"low": 1.5, "high": 8}}, "lora_rank=1.5 is not allowed"),
        ({"lora_rank": {"choices": []}}, "at least 1 item"),
        ({"lora_rank": {"choices": [4, "8"]}}, "lora_rank='8' is not allowed"),
        ({"use_dora": {"low": 0, "high": 1}}, "use_dora=0.0 is not allowed"),
        ({"learning_rate": {"low": 0.1}}, "Field required"),
        ({"learning_rate": {"low": 0.1, "high": 0.2, "step": 1}}, "Extra inputs"),
        ({"epochs": {"low": 1, "high": 2}}, "space.epochs: give exactly one of epochs, train_tokens and rows_seen"),
    ],
)
def test_a_dimension_that_does_not(small_recipe: Recipe, dimension: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _recipe(small_recipe, space=dimension)


SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "lora_rank": {"choices": [4, 16]}}


def test_a_starting_point_is_filled_with_the_recipes_values(small_recipe: Recipe) -> None:
    recipe = _recipe(small_recipe, space=SPACE, start={"mine": {"learning_rate": 1e-3, "weight_decay": 0.0}})
    expected = {"learning_rate": 1e-3, "lora_rank": recipe.hyperparameters.lora_rank, "weight_decay": 0.0}
    assert recipe.start_values("mine") == expected


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"learning_rate": 0.5}, "start.mine: learning_rate=0.5 lies outside space.learning_rate"),
        ({"lora_rank": 5}, "start.mine: lora_rank=5 lies outside space.lora_rank"),
        ({"lora_rank": 0}, "start.mine: lora_rank=0 is not allowed"),
        ({"lora_rang": 4}, "start.mine: unknown hyperparameter 'lora_rang'"),
    ],
)
def test_a_starting_point_lies_inside_the_space(small_recipe: Recipe, start: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _recipe(small_recipe, space=SPACE, start={"mine": start})


@pytest.mark.parametrize(
    ("name", "integer"),
    [("lora_rank", True), ("effective_batch", True), ("train_tokens", True), ("lora_alpha", False), ("epochs", False)],
)
def test_which_hyperparameters_are_whole(name: str, integer: bool) -> None:
    assert is_integer(name) == integer


def test_a_trial_gets_all_that_the_recipe_says(small_recipe: Recipe) -> None:
    config = small_recipe.trial_config({"lora_rank": 8})
    assert config.hyperparameters == small_recipe.hyperparameters.model_copy(update={"lora_rank": 8})
    assert (config.model, config.data, config.machine) == (small_recipe.model, small_recipe.data, small_recipe.machine)
    assert config.seed == small_recipe.search.seed


@pytest.mark.parametrize("value", ["soon", "0h", 9, True, "99999d"])
def test_budget_and_reserve_are_durations(value: object) -> None:
    with pytest.raises(ValidationError, match="duration"):
        SearchSettings(budget=value)
    with pytest.raises(ValidationError, match="duration"):
        SearchSettings(reserve=value)


def test_no_reserve_means_a_measured_one_and_a_search_has_a_budget() -> None:
    assert SearchSettings(reserve=None).reserve is None
    with pytest.raises(ValidationError, match="'None' is no duration"):
        SearchSettings.model_validate({"budget": None})


@pytest.mark.parametrize("wrong", [{"full_trials": 0}, {"gpu_watts": 0.0}, {"price_per_gpu_hour": -1.0}])
def test_figures_for_the_plan_have_limits(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="greater than"):
        SearchSettings.model_validate(wrong)
    assert SearchSettings.model_validate({"full_trials": None, "price_per_gpu_hour": 0}).full_trials is None
