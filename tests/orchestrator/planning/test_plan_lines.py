"""What the plan says about the search, line by line."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from transformers import GPT2Config

from orchestrator.planning.forecast import forecast_search
from orchestrator.planning.plan_lines import (
    cost_lines,
    evaluation_points_line,
    forecast_lines,
    memory_lines,
    reserve_line,
    speed_lines,
)
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.state.search import Placement, Search, SearchForecast
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from tests.orchestrator.planning.test_memory_bounds import mistral_night
from tests.support.fake_driver import FakeDriver
from tests.support.fake_search import START, make_search
from trials.schedule import Epoch

EPOCH = Epoch(rows=50, tokens=1000)


@pytest.fixture
def night(tmp_path: Path, fake_driver: FakeDriver) -> Search:
    """The CoT-NLI recipe, planned on a machine without a GPU."""
    return mistral_night(tmp_path)


def prediction(search: Search, recipe: Recipe, **changes: object) -> SearchForecast:
    """At 10 tokens a second."""
    throughput = ThroughputModel()
    throughput.observe(recipe.trial_config({}), 100, 10.0)
    return replace(forecast_search(replace(search, placement=Placement(1, 1)), throughput, START), **changes)  # type: ignore[arg-type]


def test_a_reserve_that_will_be_measured_is_said_to_be_a_first_guess(search: Search) -> None:
    given = search.recipe.search.model_copy(update={"reserve": "10m"})
    fixed = replace(search, recipe=search.recipe.model_copy(update={"search": given}))
    assert reserve_line(fixed) == "the last 10m00s are kept for verification, export and report"
    open_ = search.recipe.search.model_copy(update={"reserve": None})
    guess = replace(search, recipe=search.recipe.model_copy(update={"search": open_}))
    assert reserve_line(guess).endswith(", until the base model's evaluation has shown how long they take")
    assert reserve_line(replace(guess, shortened=1.0)) == reserve_line(fixed)


def test_without_a_speed_the_plan_says_so(search: Search) -> None:
    (line,) = speed_lines(forecast_search(search, ThroughputModel(), START), 900, EPOCH)
    assert line.startswith("speed: unknown until it's measured, in the first minutes")


def test_speed_length_and_counts(search: Search, small_recipe: Recipe) -> None:
    found = prediction(search, small_recipe, trials=20, full_trials=3, tokens=7000, ends=START + timedelta(hours=1))
    assert speed_lines(found, 900, EPOCH) == [
        "speed: 10 tokens/s in each of 1 trials at once, evaluations included, measured",
        "a full trial takes 1m30s: 900 tokens, 0.9 of the training data",
        "predicted: about 20 configurations, 3 of them at full length, 7,000 tokens in all; the export is there at "
        "about 23:00:00 UTC",
    ]


def test_a_shortened_trial_has_its_milestones_closer(small_recipe: Recipe) -> None:
    often = load_recipe("demo", ["every_rows=15"], environ={}).recipe
    search = make_search(often)
    whole = prediction(search, small_recipe, full_tokens=900)
    assert "at 300, 600, 900 tokens" in evaluation_points_line(search, 900, whole, EPOCH)
    half = prediction(search, small_recipe, full_tokens=450)
    assert "at 160, 320, 450 tokens" in evaluation_points_line(search, 900, half, EPOCH)
    many = make_search(load_recipe("demo", ["evaluations=60"], environ={}).recipe)
    assert evaluation_points_line(many, 900, whole, EPOCH).endswith("180 tokens, and so on, 60 in all")


def test_memory_at_the_corners(night: Search) -> None:
    (line,) = memory_lines(night)
    assert line.startswith("memory of one trial: at least ")
    assert "lora_rank 64" in line
    assert line.endswith("22.6 GiB are allowed (a GPU of 24 GiB is assumed): all corners of the space fit")


def test_corners_that_do_not_fit_are_named_with_the_reason(night: Search) -> None:
    machine = night.recipe.machine.model_copy(update={"gpu_memory_gib": 6.0})
    first, *others = memory_lines(replace(night, recipe=night.recipe.model_copy(update={"machine": machine})))
    assert first.endswith("6.0 GiB are allowed (machine.gpu_memory_gib): these don't fit, and end as out of memory:")
    assert others
    assert all("too many: base model" in line and "adapter with optimizer" in line for line in others)
    assert any("lora_rank 64" in line for line in others)
    assert not any("lora_rank 8" in line for line in others)


def test_a_model_that_nobody_can_predict(night: Search, tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    recipe = load_recipe("nli_cot", [f"model.name={tmp_path / 'gpt2'}"], environ={}).recipe
    (line,) = memory_lines(replace(night, recipe=recipe))
    assert line.startswith("memory: can't be predicted")


def test_disk_energy_and_cost(search: Search, small_recipe: Recipe) -> None:
    assert len(cost_lines(search, prediction(search, small_recipe, disk_gib=None))) == 0
    dear = search.recipe.search.model_copy(update={"price_per_gpu_hour": 0.4})
    priced = replace(search, recipe=search.recipe.model_copy(update={"search": dear}))
    disk, energy, cost = cost_lines(priced, prediction(search, small_recipe, disk_gib=0.25, energy_kwh=3.96, cost=3.52))
    assert disk.startswith("disk: at most 0.25 GiB (3 adapters are kept, and at most 30 paused trials)")
    assert energy == "energy: 4.0 kWh at 450 W per GPU (search.gpu_watts)"
    assert cost == "cost: 3.52 at 0.4 per GPU-hour"


def test_all_of_it_together(night: Search, small_recipe: Recipe) -> None:
    text = "\n".join(forecast_lines(night, 900, EPOCH, prediction(night, small_recipe)))
    for word in ("are kept for", "speed:", "predicted:", "may pause", "memory of one trial", "disk:", "energy:"):
        assert word in text
