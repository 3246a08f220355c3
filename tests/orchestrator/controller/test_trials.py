"""The table of a search's trials: which adapters stay on disk; and trials as schedulers see them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.controller.trials import TrialTable, end_of, proposed_values
from orchestrator.planning.trial_length import shortened
from orchestrator.sampling.distributions import encode, encode_all
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from search_spaces.schema import Choices, Dimension, Range, Recipe
from tests.support.fake_search import point, record
from trials.records.trial_dir import Ending, Origin, TrialDir
from trials.state import TrialState


def add(run: RunDir, name: str, loss: float) -> TrialDir:
    folder = TrialDir(run.trial(name))
    folder.begin(run.read_search().recipe.trial_config({}), Origin.PROPOSED, "proposed")
    record(folder, point(loss, 100))
    return folder


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, {"0001"}), (3, {"0001", "0002", "0003"}), (4, {f"000{n}" for n in range(1, 5)})]
)
def test_the_best_of_ended_trials_keep_their_adapters_and_those_that_run_too(
    run: RunDir, keep: int, kept: set[str]
) -> None:
    finished = Ending(TrialState.FINISHED, "made up")
    for name, loss in (("0001", 1.0), ("0002", 3.0), ("0003", 2.0)):
        add(run, name, loss).end(finished)
    for name, loss in (("0004", 8.0), ("0005", 9.0)):
        add(run, name, loss)
    table = TrialTable(run, run.records(), keep)
    table.end(table["0004"], finished)
    assert {each.id for each in run.records() if each.has_adapter} == kept | {"0005"}


@pytest.mark.parametrize("factor", [1.0, 0.37, 1 / 3])
@pytest.mark.parametrize(
    ("name", "dimension", "value"),
    [
        ("epochs", Choices(choices=(1.0, 2.0, 3.0)), 3.0),
        ("epochs", Range(low=0.5, high=3.0), 3.0),
        ("train_tokens", Range(low=1000, high=60_000), 60_000),
        ("lora_rank", Choices(choices=(4, 8)), 8),
        ("target_modules", Choices(choices=(["q_proj"], ["q_proj", "v_proj"])), ["q_proj", "v_proj"]),
    ],
)
def test_a_shortened_trial_is_shown_with_the_values_that_were_proposed(
    small_recipe: Recipe, name: str, dimension: Dimension, value: Any, factor: float
) -> None:
    lengths = {"epochs": None, "train_tokens": None, "rows_seen": None} if name in ("epochs", "train_tokens") else {}
    hyperparameters = small_recipe.hyperparameters.model_copy(update={**lengths, name: value})
    space = {name: dimension}
    found = proposed_values(shortened(hyperparameters, factor), space, factor)
    told = encode_all({name: value}, space)
    assert found == (told if isinstance(told[name], str) else pytest.approx(told))
    assert not isinstance(dimension, Choices) or found[name] in [encode(each, dimension) for each in dimension.choices]


def test_a_configuration_ends_at_its_share_of_the_longest_trial(search: Search) -> None:
    search = replace(search, data={"train": {"rows": 100, "tokens": 1000}}, full_tokens=900, shortened=0.3)
    assert end_of({"epochs": 3.0}, search) == pytest.approx(1.0)  # 3,000 tokens, shortened to 900
    assert end_of({"epochs": 1.0}, search) == pytest.approx(1 / 3)
    assert end_of({"learning_rate": 1e-3}, search) == 1.0
