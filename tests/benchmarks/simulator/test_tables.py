"""Tables of recorded curves: what a proposal gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.simulator.landscapes import CURVES
from benchmarks.simulator.tables import Entry, Table, demo_table, peft_table
from search_spaces.loader import load_recipe
from search_spaces.schema import Range
from trials.errors import InputError

SPACE = {"learning_rate": Range(low=1e-5, high=1e-1, log=True), "lora_dropout": Range(low=0.0, high=1.0)}
ENTRIES = [
    Entry({"learning_rate": 1e-4, "lora_dropout": 0.5}, [(0.5, 3.0), (1.0, 2.0)]),
    Entry({"learning_rate": 1e-2, "lora_dropout": 0.5}, [(0.5, 2.5), (1.0, 1.0)]),
]


def test_a_proposal_gets_the_curve_of_the_nearest_entry() -> None:
    table = Table(ENTRIES, SPACE, ENTRIES[0].values)
    # 2e-3 is nearer to 1e-2 in the logarithm, though not in the plain value.
    proposals = [{"learning_rate": rate, "lora_dropout": 0.4} for rate in (3e-5, 2e-4, 2e-3, 9e-2)]
    assert table.losses(proposals, [0.75, 1.0]).tolist() == [[2.5, 2.0], [2.5, 2.0], [1.75, 1.0], [1.75, 1.0]]
    hyperparameters = load_recipe("demo", [], environ={}).recipe.hyperparameters_with(proposals[2])
    assert table.curve("0001", hyperparameters).points == ENTRIES[1].curve


def test_an_entry_can_be_had_again() -> None:
    table = Table(ENTRIES, SPACE, ENTRIES[0].values)
    assert table.nearest(ENTRIES[0].values) is table.nearest(ENTRIES[0].values) is ENTRIES[0]


def test_the_demo_table_has_200_entries_and_the_seed_chooses_between_recordings() -> None:
    first, again, other = demo_table(1), demo_table(1), demo_table(2)
    assert len(first.entries) == 200
    assert [entry.curve for entry in first.entries] == [entry.curve for entry in again.entries]
    differing = [a.values == b.values and a.curve != b.curve for a, b in zip(first.entries, other.entries, strict=True)]
    assert 5 < sum(differing) <= 40
    assert all(len(entry.curve) == 18 and entry.curve[-1][0] == 1.0 for entry in first.entries)


@pytest.mark.skipif(not (CURVES / "peft_metamathqa.json").exists(), reason="the curves are not in the repository")
def test_every_peft_run_is_an_entry_and_gets_its_own_training_losses() -> None:
    table = peft_table(CURVES)
    runs = json.loads((CURVES / "peft_metamathqa.json").read_text(encoding="utf-8"))
    assert len(table.entries) == len(runs) == 63
    found = table.losses([entry.values for entry in table.entries], [0.05, 1.0])
    assert found.tolist() == [[run["loss"][0], run["loss"][-1]] for run in runs]
    assert table.start in [entry.values for entry in table.entries]


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no peft_metamathqa.json in .*--curves DIR"):
        peft_table(tmp_path)
