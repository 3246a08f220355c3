"""The judge: its losses are those that the trial itself measured, whatever the adapter's folder says of its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.head_to_head.contest import Contest
from benchmarks.head_to_head.judge import Judging, judge, judge_apart, read_judging
from search_spaces.schema import Recipe
from trials.errors import ModelError
from trials.records.trial_dir import TrialRecord


@pytest.fixture
def judging(small_recipe: Recipe) -> Judging:
    """Its rows are the first of those that the trial was evaluated on."""
    data = small_recipe.data
    contest = Contest("demo", small_recipe.model.name, data.train, data.eval, f"{data.eval}[:12]", cpu=True)
    return Judging.of(contest, small_recipe)


def test_settings_are_read_as_they_were_written(judging: Judging, tmp_path: Path) -> None:
    judging.write(tmp_path / "judging.json")
    assert read_judging(tmp_path / "judging.json") == judging


def test_an_adapter_has_the_losses_that_its_trial_measured(judging: Judging, small_trial: TrialRecord) -> None:
    found = judge(judging, small_trial.adapter)
    measured = small_trial.row_losses()
    assert measured is not None
    assert list(found.losses.token_counts) == list(measured.token_counts)
    assert found.losses.loss_sums == pytest.approx(measured.loss_sums, rel=1e-3)


def test_another_process_says_why_it_can_not_judge(judging: Judging, tmp_path: Path) -> None:
    judging.write(tmp_path / "judging.json")
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3]), "HF_HUB_OFFLINE": "1"}
    with pytest.raises(ModelError, match=r"nothing can't be judged: .*error: "):
        judge_apart(tmp_path / "judging.json", tmp_path / "nothing", tmp_path / "judged.json", environ)
    assert not (tmp_path / "judged.json").exists()
