"""Running rivals: what is known is not run again, and what can't run says so before any wall clock starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.head_to_head.contest import Checked, Contest, environment
from benchmarks.head_to_head.curves import Evaluation
from benchmarks.head_to_head.matches import Matches
from benchmarks.head_to_head.outcomes import Outcome
from benchmarks.head_to_head.rivals import Rival
from search_spaces.schema import Recipe
from trials.errors import InputError
from trials.schedule import Epoch

UNKNOWN_KEY = {"ORCHESTRATOR__NOTHING": "1"}
"""No command of the product starts with it."""


def matches(recipe: Recipe, out: Path, extra: Mapping[str, str]) -> Matches:
    data = recipe.data
    contest = Contest("demo", recipe.model.name, data.train, data.eval, "hidden.jsonl", cpu=True)
    known = Checked(recipe, Epoch(4500, 450_000), full_tokens=3000, test_rows=8)
    return Matches(contest, known, environment(contest, {**os.environ, **extra}, ROOT), out)


def test_a_result_is_not_run_again(small_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "60s-seed2" / "ours"
    folder.mkdir(parents=True)
    known = Outcome(
        *(Rival.OURS, 60.0, 2, ("x",), 50.0, 45.0, 0, False, "run/export", 3, 300, 0.5), (Evaluation(9.0, 2.0),)
    )
    known.write(folder / "result.json")
    assert matches(small_recipe, tmp_path, UNKNOWN_KEY).outcome(Rival.OURS, 60.0, 2) == known
    assert "our search, 1m00s, seed 2: run before" in capsys.readouterr().out
    assert not (tmp_path / "warm-up.txt").exists()


def test_what_can_not_run_at_all_is_one_error_with_its_log(small_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a trial of one step fails; .*warm-up.txt says why"):
        matches(small_recipe, tmp_path, UNKNOWN_KEY).outcome(Rival.OURS, 60.0, 0)
    assert "ORCHESTRATOR__NOTHING" in (tmp_path / "warm-up.txt").read_text()
    assert not (tmp_path / "60s-seed0").exists()
