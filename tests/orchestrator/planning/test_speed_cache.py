"""Speed before anything has run: remembered from an earlier search, or worked out from the GPU's name."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.planning.speed_cache import EARLIER, ESTIMATED, MEASURED, measured_speed, save_speed, speed_before
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.state.search import Placement, Search
from search_spaces.schema import Recipe
from tests.support.fake_driver import FakeDriver


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    return tmp_path / "qlora-orchestrator" / "speeds.json"


@pytest.fixture
def throughput(small_recipe: Recipe) -> ThroughputModel:
    """Two trials side by side in one engine, 500 tokens a second each."""
    throughput = ThroughputModel()
    throughput.observe(small_recipe.trial_config({}), 1000, 2.0)
    throughput.observe_start(0.5)
    return throughput


def placed(search: Search, engines: int, slots: int) -> Search:
    return replace(search, placement=Placement(engines, slots))


def test_what_was_measured_is_said_so(throughput: ThroughputModel) -> None:
    found = measured_speed(throughput)
    assert found is not None
    assert found.source == MEASURED
    assert found.seconds_per_token == pytest.approx(0.002)
    assert measured_speed(ThroughputModel()) is None


def test_on_a_cpu_nothing_is_known_before_a_first_search(search: Search) -> None:
    assert speed_before(search) is None


def test_a_later_search_knows_what_an_earlier_one_measured(search: Search, throughput: ThroughputModel) -> None:
    save_speed(placed(search, engines=1, slots=2), throughput)
    found = speed_before(placed(search, engines=1, slots=4))
    assert found is not None
    assert found.source == EARLIER
    assert found.start_seconds == pytest.approx(0.5)
    assert found.seconds_per_token == pytest.approx(0.004)  # twice as many share the engine


def test_another_base_model_or_engine_was_not_measured(search: Search, throughput: ThroughputModel) -> None:
    save_speed(placed(search, 1, 2), throughput)
    model = search.recipe.model.model_copy(update={"quantization": "none"})
    other = replace(search, recipe=search.recipe.model_copy(update={"model": model}))
    assert speed_before(placed(other, 1, 2)) is None
    machine = search.recipe.machine.model_copy(update={"engine": "trl"})
    other = replace(search, recipe=search.recipe.model_copy(update={"machine": machine}))
    assert speed_before(placed(other, 1, 2)) is None


def test_a_model_that_was_replaced_in_its_folder_was_not_measured(
    search: Search, throughput: ThroughputModel, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(search.recipe.model.name, tmp_path / "base"))
    model = search.recipe.model.model_copy(update={"name": str(base)})
    ours = placed(replace(search, recipe=search.recipe.model_copy(update={"model": model})), 1, 2)
    save_speed(ours, throughput)
    assert speed_before(ours) is not None
    config = base / "config.json"
    times = config.stat()
    config.write_text(
        config.read_text(encoding="utf-8").replace('"num_hidden_layers": ', '"num_hidden_layers": 1'), encoding="utf-8"
    )
    os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert speed_before(ours) is None


def test_several_processes_together_are_as_fast_as_they_were(search: Search, throughput: ThroughputModel) -> None:
    two = replace(placed(search, 1, 1), ranks=2)
    save_speed(placed(search, 1, 1), throughput)
    assert speed_before(two) is None
    save_speed(two, throughput)
    assert speed_before(two) is not None
    assert speed_before(replace(two, ranks=3)) is None


def test_nothing_measured_is_nothing_remembered(search: Search, cache: Path) -> None:
    save_speed(search, ThroughputModel())
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"half', '{"KEY": {"tokens_per_second": 0}}', '{"KEY": 3}'])
def test_a_broken_cache_is_no_error(search: Search, throughput: ThroughputModel, cache: Path, content: str) -> None:
    ours = placed(search, 1, 2)
    save_speed(ours, throughput)
    key = cache.read_text(encoding="utf-8").split('"')[1]
    cache.write_text(content.replace("KEY", key), encoding="utf-8")
    assert speed_before(ours) is None
    save_speed(ours, throughput)
    assert speed_before(ours) is not None


def test_a_cache_that_cannot_be_written_is_no_error(
    search: Search, throughput: ThroughputModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_text("a file where a folder should be", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    save_speed(placed(search, 1, 2), throughput)
    assert speed_before(placed(search, 1, 2)) is None


def test_a_known_gpu_is_worked_out_and_said_to_be_an_estimate(search: Search, fake_driver: FakeDriver) -> None:
    fake_driver("NVIDIA GeForce RTX 4090")
    on_gpu = replace(search, gpus_per_trial=1, placement=Placement(1, 4))
    found = speed_before(on_gpu)
    assert found is not None
    assert found.source == ESTIMATED
    alone = speed_before(replace(on_gpu, placement=Placement(1, 1)))
    assert alone is not None
    assert found.seconds_per_token == pytest.approx(4 * alone.seconds_per_token)
    data = {"eval": {"tokens": 50 * search.full_tokens}}
    evaluated = speed_before(replace(on_gpu, data=data))
    assert evaluated is not None
    assert evaluated.seconds_per_token > 50 * found.seconds_per_token


def test_evaluations_by_rows_cost_as_many_as_there_are(search: Search, fake_driver: FakeDriver) -> None:
    fake_driver("NVIDIA GeForce RTX 4090")
    rows = {"train": {"rows": 90, "tokens": search.full_tokens}, "eval": {"tokens": search.full_tokens}}
    on_gpu, found = replace(search, gpus_per_trial=1, placement=Placement(1, 1), data=rows), []
    for settings in ({"evaluations": 30, "every_rows": None}, {"evaluations": 9, "every_rows": 3}):
        evaluation = search.recipe.evaluation.model_copy(update=settings)
        recipe = search.recipe.model_copy(update={"evaluation": evaluation})
        found.append(speed_before(replace(on_gpu, recipe=recipe)))
    assert found[0] == found[1]


def test_several_gpus_are_estimated_to_be_nearly_as_many_times_as_fast(search: Search, fake_driver: FakeDriver) -> None:
    fake_driver("NVIDIA GeForce RTX 4090")
    one = speed_before(replace(search, gpus_per_trial=1, placement=Placement(1, 1)))
    two = speed_before(replace(search, gpus_per_trial=2, ranks=2, placement=Placement(1, 1)))
    assert one is not None
    assert two is not None
    assert one.seconds_per_token / 2 < two.seconds_per_token < one.seconds_per_token


def test_an_unknown_gpu_is_not_guessed(search: Search, fake_driver: FakeDriver) -> None:
    fake_driver("NVIDIA Unknown 1")
    assert speed_before(replace(search, gpus_per_trial=1, placement=Placement(1, 4))) is None
