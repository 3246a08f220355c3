"""How many engines and slots a search gets from a recipe and machines that are not here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.planning.placement import (
    groups_on_cpu,
    plan_placement,
    refuse_small_batches,
    slots_per_worker,
    trl_reason,
)
from orchestrator.state.search import Placement, Search
from search_spaces.loader import load_recipe
from tests.conftest import SMALL
from tests.support.fake_search import make_search
from trials.errors import RecipeError

COUNTS = {"train": {"rows": 100, "tokens": 25_600}}


def search_for(*settings: str, gpus_per_trial: int = 1, ranks: int = 1) -> Search:
    recipe = load_recipe("demo", [*SMALL, "engine=shared", "concurrent_trials=null", *settings], environ={}).recipe
    return replace(make_search(recipe), gpus_per_trial=gpus_per_trial, data=COUNTS, ranks=ranks)


@pytest.mark.parametrize(
    ("step_tokens", "slots"), [(100, 8), (600, 8), (1024, 5), (1365.4, 4), (4096, 2), (4097, 2), (100_000, 2)]
)
def test_slots_fill_a_micro_step_and_one_more(step_tokens: float, slots: int) -> None:
    assert slots_per_worker(step_tokens, 4096) == slots


def test_an_engine_per_gpu_with_slots_for_the_smallest_batch() -> None:
    eager = "machine.cuda_graphs=false"
    search = search_for(eager, "effective_batch=16", "space.effective_batch={choices: [16, 8, 32]}")  # of 256 tokens
    assert plan_placement(search, gpus=2, cores=[32]) == Placement(engines=2, slots=8)
    started = search_for(eager, "space.effective_batch=null", "start.small={effective_batch: 2}")
    assert plan_placement(started, gpus=1, cores=[32]) == Placement(engines=1, slots=8)


def test_two_trials_at_once_of_a_model_whose_passes_have_one_trial_each() -> None:
    small = search_for("space.effective_batch=null", "start.small={effective_batch: 2}")
    assert plan_placement(small, gpus=2, cores=[32]) == Placement(engines=2, slots=4)
    wide = replace(small.shape, num_hidden_layers=32, hidden_size=4096, intermediate_size=14336)
    large = replace(small, base=wide)
    assert plan_placement(large, gpus=1, cores=[32]) == Placement(engines=1, slots=8)


def test_slots_that_were_measured_to_be_of_no_use_are_not_planned_again() -> None:
    settings = ("machine.cuda_graphs=false", "space.effective_batch=null", "start.small={effective_batch: 2}")
    assert plan_placement(search_for(*settings), gpus=2, cores=[32]).slots == 16
    search = replace(search_for(*settings), slots_of_use=2)
    assert plan_placement(search, gpus=2, cores=[32]) == Placement(engines=2, slots=4)
    asked = replace(search_for("concurrent_trials=8"), slots_of_use=2)
    assert plan_placement(asked, gpus=1, cores=[32]) == Placement(engines=1, slots=8)


def test_without_gpus_an_engine_per_so_many_cores_as_it_has_threads() -> None:
    alone = search_for("cpu_threads=1", gpus_per_trial=0)
    assert plan_placement(alone, gpus=2, cores=[8, 2]) == Placement(engines=10, slots=10)
    three = search_for("cpu_threads=3", gpus_per_trial=0)
    assert plan_placement(three, gpus=0, cores=[8, 2]) == Placement(engines=3, slots=3)
    assert plan_placement(search_for("cpu_threads=null", gpus_per_trial=0), gpus=0, cores=[8, 2]) == Placement(2, 2)
    fewer, more = (search_for("cpu_threads=1", f"concurrent_trials={n}", gpus_per_trial=0) for n in (3, 16))
    assert plan_placement(fewer, gpus=0, cores=[8, 2]) == Placement(engines=3, slots=3)
    assert plan_placement(more, gpus=0, cores=[8, 2]) == Placement(engines=10, slots=16)


def test_the_recipe_may_say_how_many_trials_run_at_once() -> None:
    search = search_for("concurrent_trials=3")
    assert plan_placement(search, gpus=2, cores=[32]) == Placement(engines=2, slots=3)
    assert plan_placement(search, gpus=2, cores=[32]).slots_per_worker == 2
    assert plan_placement(search, gpus=8, cores=[32]) == Placement(engines=3, slots=3)


def test_a_search_has_no_more_slots_than_trials() -> None:
    one, three = (search_for(f"trials={n}") for n in (1, 3))
    assert plan_placement(one, gpus=2, cores=[32]) == Placement(engines=1, slots=1)
    assert plan_placement(three, gpus=2, cores=[32]) == Placement(engines=2, slots=3)
    assert plan_placement(search_for("trials=3", "concurrent_trials=2"), gpus=2, cores=[32]) == Placement(
        engines=2, slots=2
    )
    assert plan_placement(search_for("trials=2", ranks=2), gpus=8, cores=[32]) == Placement(engines=2, slots=2)
    assert plan_placement(search_for("trials=1", "engine=trl"), gpus=2, cores=[32]) == Placement(engines=1, slots=1)


def test_with_trl_a_trial_per_gpu_or_core() -> None:
    assert plan_placement(search_for("engine=trl"), gpus=2, cores=[32]) == Placement(engines=2, slots=2)
    assert plan_placement(search_for("engine=trl", gpus_per_trial=0), gpus=2, cores=[32]) == Placement(32, 32)
    assert plan_placement(
        search_for("engine=trl", "concurrent_trials=4", gpus_per_trial=0), gpus=0, cores=[2]
    ) == Placement(2, 2)


@pytest.mark.parametrize("settings", [(), ("engine=trl",)])
def test_a_trial_over_several_gpus_has_them_alone(settings: tuple[str, ...]) -> None:
    search = search_for(*settings, gpus_per_trial=2, ranks=2)
    assert plan_placement(search, gpus=5, cores=[32]) == Placement(engines=2, slots=2)
    fewer = search_for("concurrent_trials=1", *settings, gpus_per_trial=2, ranks=2)
    assert plan_placement(fewer, gpus=5, cores=[32]) == Placement(engines=1, slots=1)


def test_processes_on_the_cpu_stand_in_for_gpus() -> None:
    search = search_for("cpu_threads=1", gpus_per_trial=0, ranks=2)
    assert plan_placement(search, gpus=0, cores=[8, 2]) == Placement(engines=5, slots=5)
    assert [groups_on_cpu(search, cores) for cores in (1, 2, 3, 4)] == [1, 1, 1, 2]
    undivided = search_for("cpu_threads=null", gpus_per_trial=0, ranks=2)
    assert plan_placement(undivided, gpus=0, cores=[8, 2]) == Placement(engines=2, slots=2)


def test_every_process_of_a_trial_needs_a_row_of_every_step() -> None:
    recipe = search_for("space.effective_batch=null", "start.small={effective_batch: 2}").recipe
    refuse_small_batches(recipe, 2)
    with pytest.raises(RecipeError, match="effective_batch 2 can't be divided over 3 GPUs"):
        refuse_small_batches(recipe, 3)


@pytest.mark.parametrize("settings", [(), ("engine=trl",)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_without_the_gpus_that_it_asks_for_there_is_no_slot(settings: tuple[str, ...], ranks: int) -> None:
    search = search_for("concurrent_trials=3", *settings, gpus_per_trial=ranks, ranks=ranks)
    assert plan_placement(search, gpus=ranks - 1, cores=[32]).slots == 0


def test_a_run_folder_that_counted_no_rows_gets_few_slots() -> None:
    assert plan_placement(replace(search_for(), data={}), gpus=1, cores=[32]) == Placement(engines=1, slots=2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("engine=trl",), "the recipe asks for TRL"),
        (("use_dora=true",), "the engine has no DoRA"),
        (("space.use_dora={choices: [true, false]}",), "some configurations are not for it: the engine has no DoRA"),
        (("use_dora=true", "start.usual.use_dora=false"), "some configurations are not for it: the engine has no DoRA"),
        (("start.usual.neftune_noise_alpha=2.0",), "some configurations are not for it: the engine has no NEFTune"),
        (("space.neftune_noise_alpha={low: 0.0, high: 5.0}",), "some configurations are not for it: the engine has no"),
        (("space.target_modules={choices: [[lm_head], [q_proj, lm_head]]}", "start.usual=null"), "the engine has no "),
    ],
)
def test_engines_are_for_recipes_whose_every_configuration_they_can_do(settings: tuple[str, ...], reason: str) -> None:
    search = search_for(*settings)
    assert str(trl_reason(search)).startswith(reason)
    assert plan_placement(search, gpus=2, cores=[32]) == Placement(engines=2, slots=2)


def test_what_decides_nothing_may_vary() -> None:
    targets = "space.target_modules={choices: [[q_proj], [q_proj, up_proj]]}"
    assert trl_reason(search_for(targets, "start.usual.target_modules=[q_proj]")) is None
