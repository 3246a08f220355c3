"""What the search will have done by its end, at a speed that was measured, or is unknown."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.planning.forecast import forecast_search, gpu_count
from orchestrator.planning.speed_cache import MEASURED
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.state.search import Placement, Search
from search_spaces.schema import Recipe
from tests.support.fake_search import START, make_run


@pytest.fixture
def throughput(small_recipe: Recipe) -> ThroughputModel:
    """A trial's 900 tokens take 90 s, without any time to start."""
    throughput = ThroughputModel()
    throughput.observe(small_recipe.trial_config({}), 1000, 100.0)
    throughput.observe_start(1e-3)
    return throughput


def with_settings(search: Search, **settings: Any) -> Search:
    changed = search.recipe.search.model_copy(update=settings)
    return replace(search, recipe=search.recipe.model_copy(update={"search": changed}), placement=Placement(1, 1))


def test_prediction_of_an_hour(search: Search, throughput: ThroughputModel) -> None:
    # 50 minutes of training hold 33 full trials: the starting point in full, of the others some only in part
    found = forecast_search(with_settings(search, trials=None), throughput, START)
    assert found.full_tokens == 900
    assert found.trials == pytest.approx(1 + 32.3 / 0.42, abs=1)
    assert found.full_trials == pytest.approx(1 + 76 * 0.22, abs=1)
    assert found.tokens == pytest.approx(33.3 * 900, rel=0.01)
    assert found.source == MEASURED
    assert search.deadline.training_ends < found.ends < search.deadline.ends
    assert (found.energy_kwh, found.cost) == (None, None)


def test_few_allowed_trials_end_before_the_deadline(search: Search, throughput: ThroughputModel) -> None:
    found = forecast_search(with_settings(search, trials=4), throughput, START)
    assert found.trials == 4
    assert found.ends == pytest.approx(START + timedelta(seconds=4 * 90 + 600 * 0.6), abs=timedelta(seconds=1))


def test_where_not_even_one_fits_one_is_begun(search: Search, throughput: ThroughputModel) -> None:
    late = search.deadline.training_ends - timedelta(seconds=30)
    found = forecast_search(replace(with_settings(search, trials=None), shortened=1.0), throughput, late)
    assert (found.trials, found.full_trials) == (1, 0)


def test_a_short_night_shortens_trials_once(search: Search, throughput: ThroughputModel) -> None:
    soon = search.deadline.training_ends - timedelta(seconds=270)
    found = forecast_search(with_settings(search), throughput, soon)
    assert found.full_tokens == pytest.approx(450, abs=1)
    assert found.full_trials is not None
    assert found.full_trials >= 1
    assert forecast_search(replace(with_settings(search), shortened=0.9), throughput, soon).full_tokens == 900


def test_energy_and_cost_count_every_gpu_from_the_command_to_the_export(
    search: Search, throughput: ThroughputModel
) -> None:
    priced = with_settings(search, price_per_gpu_hour=2.5, gpu_watts=400.0)
    found = forecast_search(replace(priced, gpus_per_trial=1, placement=Placement(2, 8)), throughput, START)
    hours = 2 * (found.ends - search.deadline.started).total_seconds() / 3600
    assert found.energy_kwh == pytest.approx(hours * 0.4)
    assert found.cost == pytest.approx(hours * 2.5)


@pytest.mark.parametrize(
    ("gpus_per_trial", "ranks", "placement", "gpus"),
    [(0, 2, Placement(2, 2), 0), (1, 1, Placement(2, 8), 2), (2, 2, Placement(3, 3), 6), (1, 1, Placement(4, 4), 4)],
)
def test_every_gpu_of_a_trial_counts(
    search: Search, gpus_per_trial: int, ranks: int, placement: Placement, gpus: int
) -> None:
    assert gpu_count(replace(search, gpus_per_trial=gpus_per_trial, ranks=ranks), placement) == gpus


def test_without_any_speed_only_what_does_not_depend_on_it_is_predicted(search: Search) -> None:
    found = forecast_search(with_settings(search), ThroughputModel(), START)
    assert (found.trials, found.full_trials, found.tokens, found.source) == (None, None, None, None)
    assert found.disk_gib is not None


def test_a_prediction_survives_search_json(tmp_path: Path, search: Search, throughput: ThroughputModel) -> None:
    for found in (
        forecast_search(with_settings(search), throughput, START),
        forecast_search(with_settings(search), None, START),
    ):
        run = make_run(tmp_path / str(found.trials), replace(search, prediction=found))
        content = json.loads((run.path / "search.json").read_text())
        assert content["prediction"]["made"] == START.isoformat()
        content["prediction"]["of_a_later_version"] = 1
        (run.path / "search.json").write_text(json.dumps(content))
        assert run.read_search().prediction == found
