"""Memory at the corners of a space, from configs of real models, without weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GPT2Config, MistralConfig

from orchestrator.planning.disk_usage import disk_gib
from orchestrator.planning.memory_bounds import memory_bounds, memory_limit
from orchestrator.state.search import Search
from search_spaces.loader import load_recipe
from search_spaces.schema import Choices, Range
from tests.support.fake_driver import FakeDriver
from tests.support.fake_search import make_search


def mistral_night(folder: Path) -> Search:
    """The CoT-NLI recipe on a GPU; of Mistral-7B only its config is there."""
    MistralConfig(sliding_window=None, num_key_value_heads=8, vocab_size=32768).save_pretrained(folder / "model")
    recipe = load_recipe("nli_cot", [f"model.name={folder / 'model'}"], environ={}).recipe
    return replace(make_search(recipe), gpus_per_trial=1)


@pytest.fixture
def night(tmp_path: Path) -> Search:
    return mistral_night(tmp_path)


def test_the_corners_are_extremes_of_what_decides(night: Search) -> None:
    found = memory_bounds(night)
    extremes = [(bound.values["lora_rank"], len(bound.values["target_modules"])) for bound in found]
    assert extremes[0] == (8, 4)
    assert extremes[-1] == (64, 7)
    assert (16, 4) in extremes  # the starting point
    assert 4 < found[0].need.gib < found[-1].need.gib < 12
    # rank times inputs and outputs of q, k, v, o, gate, up and down in 32 layers
    assert found[-1].parameters == 64 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)


def test_a_value_that_only_a_starting_point_sets_is_a_corner_too(night: Search) -> None:
    start = {"wide": {"optimizer": "adamw_torch"}}
    found = memory_bounds(replace(night, recipe=night.recipe.model_copy(update={"start": start})))
    assert [bound.values.get("optimizer") for bound in found].count("adamw_torch") == 1


def test_an_average_of_the_adapter_needs_more_memory_and_disk(night: Search) -> None:
    space = {**night.recipe.space, "adapter_average": Range(low=0.0, high=0.2)}
    both = memory_bounds(replace(night, recipe=night.recipe.model_copy(update={"space": space})))
    assert {bound.values.get("adapter_average") for bound in both} >= {0.0, 0.2}
    plain, largest = memory_bounds(night)[-1], both[-1]
    assert largest.values["adapter_average"] == 0.2
    assert largest.need.total_bytes == plain.need.total_bytes + 4 * plain.parameters
    assert largest.parameters == plain.parameters
    averaged = night.recipe.hyperparameters.model_copy(update={"adapter_average": 0.2})
    search = replace(night, recipe=night.recipe.model_copy(update={"hyperparameters": averaged}))
    of_both = disk_gib(search, 1, 30), disk_gib(night, 1, 30)
    assert of_both[0] is not None
    assert of_both[1] is not None
    assert of_both[0] > of_both[1]


def test_longer_rows_need_more(night: Search) -> None:
    short = replace(night, data={"train": {"longest": 256}, "eval": {"longest": 300}})
    assert memory_bounds(short)[0].need.total_bytes < memory_bounds(night)[0].need.total_bytes


def test_a_model_that_nobody_can_predict_has_no_corners(night: Search, tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    recipe = load_recipe("nli_cot", [f"model.name={tmp_path / 'gpt2'}"], environ={}).recipe
    assert memory_bounds(replace(night, recipe=recipe)) == []
    recipe = load_recipe("nli_cot", [f"model.name={tmp_path / 'absent'}"], environ={}).recipe
    assert memory_bounds(replace(night, recipe=recipe)) == []
    assert disk_gib(replace(night, recipe=recipe), 1, 30) is None


def test_what_a_trial_may_take(night: Search, fake_driver: FakeDriver) -> None:
    assert memory_limit(night).gib == pytest.approx(24 * 0.94)
    assert memory_limit(night).reason == "a GPU of 24 GiB is assumed"
    fake_driver("NVIDIA Unheard Of", total_mib="81920", free_mib="81000")
    assert (memory_limit(night).gib, memory_limit(night).reason) == (pytest.approx(80 * 0.94), "NVIDIA Unheard Of")
    fake_driver("NVIDIA GeForce RTX 4090", total_mib="24576", free_mib="18432")
    assert memory_limit(night).gib == pytest.approx(18 - 0.5)
    assert memory_limit(night).reason == "NVIDIA GeForce RTX 4090, as others have taken the rest"
    machine = night.recipe.machine.model_copy(update={"gpu_memory_gib": 20.0})
    given = replace(night, recipe=night.recipe.model_copy(update={"machine": machine}))
    assert (memory_limit(given).gib, memory_limit(given).reason) == (20.0, "machine.gpu_memory_gib")


def test_the_disk_is_bounded_by_what_is_kept(night: Search) -> None:
    parameters = memory_bounds(night)[-1].parameters
    few, many = disk_gib(night, 2, 40), disk_gib(night, 2, 4000)
    assert few is not None
    assert many is not None
    kept = night.recipe.search.keep_paused + 2
    assert few > kept * parameters * (4 + 4 + 2) / 2**30  # best adapter, checkpoint's adapter, optimizer in 8 bits
    assert many - few < 0.5  # more trials leave only records
    fewer = night.recipe.search.model_copy(update={"keep_paused": 4})
    bounded = disk_gib(replace(night, recipe=night.recipe.model_copy(update={"search": fewer})), 2, 40)
    assert bounded is not None
    assert bounded < few / 2


def test_the_disk_is_bounded_by_the_largest_optimizer_of_the_space(night: Search) -> None:
    assert "8bit" in night.recipe.hyperparameters.optimizer
    space = {**night.recipe.space, "optimizer": Choices(choices=("adamw_8bit", "adamw_torch"))}
    varied = disk_gib(replace(night, recipe=night.recipe.model_copy(update={"space": space})), 2, 40)
    alone = disk_gib(night, 2, 40)
    assert varied is not None
    assert alone is not None
    kept = night.recipe.search.keep_paused + 2
    parameters = memory_bounds(night)[-1].parameters
    assert varied - alone > kept * parameters * (8 - 2) / 2**30  # moments of 32 bits in place of 8
