"""Commands of the rivals: what their options make of the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.head_to_head.contest import Contest, usual_values
from benchmarks.head_to_head.rivals import LABELS, Rival, search_command, single_command, stock_command
from orchestrator.search import parser as search_parser
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from tests.support.cli import ROOT
from trials.train import parser as trial_parser

DEMO = ROOT / "search_spaces" / "demo"
CONTEST = Contest(
    *("demo", str(DEMO / "base"), str(DEMO / "train.jsonl"), str(DEMO / "dev.jsonl"), "hidden.jsonl"),
    requests=("search.sampler=random",),
    cpu=True,
    gpu_memory_gib=23.5,
)


def searched(rival: Rival) -> Recipe:
    given = search_parser().parse_args(search_command(CONTEST, rival, 240, 3, Path("out"))[3:])
    assert (given.budget, given.gpus_per_trial) == ("240s", 0)
    return load_recipe(given.space, given.set, environ={}).recipe


def test_our_search_has_the_defaults_but_for_what_all_get() -> None:
    ours = searched(Rival.OURS)
    assert (ours.search.seed, ours.machine.gpu_memory_gib) == (3, 23.5)
    assert (ours.search.sampler, ours.search.scheduler, ours.machine.engine) == ("random", "freeze_thaw", "shared")


def test_stock_parts_come_before_what_all_get() -> None:
    parts = searched(Rival.STOCK_PARTS)
    assert (parts.search.sampler, parts.search.scheduler, parts.machine.engine) == ("tpe", "asha", "trl")


def test_a_single_trial_has_the_starting_point_and_its_length() -> None:
    recipe = CONTEST.resolved(seed=0)
    values = {**usual_values(recipe), "train_tokens": 5000}
    given = trial_parser().parse_args(single_command(CONTEST, values, 1, Path("out"))[3:])
    config = load_recipe(given.space, given.set, environ={}).recipe.trial_config({})
    assert (config.hyperparameters.learning_rate, config.hyperparameters.train_tokens, config.seed) == (2e-4, 5000, 1)


def test_stock_gets_time_seed_and_folder() -> None:
    assert stock_command(Path("request.json"), 90.5, 2, Path("out"))[3:] == ["request.json", "90.5", "2", "out"]


@pytest.mark.parametrize("rival", Rival)
def test_every_rival_has_a_name(rival: Rival) -> None:
    assert LABELS[rival]
    assert rival.is_single is rival.value.startswith("re")
