"""What all rivals get: the same rows and settings, and no row that judges them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.head_to_head.contest import Contest, checked, claim_folder, environment, usual
from search_spaces.loader import load_recipe
from tests.support.cli import ROOT
from trials.errors import DataError, RecipeError, RunFolderError

DEMO = ROOT / "search_spaces" / "demo"
SHORT = ("train_tokens=3000", "eval_rows=12")


def rows(path: Path, source: str, first: int, count: int) -> str:
    lines = (DEMO / source).read_text().splitlines(keepends=True)
    path.write_text("".join(lines[first : first + count]))
    return str(path)


def contest(test: str, *requests: str, train: str | None = None, dev: str | None = None) -> Contest:
    train, dev = train or str(DEMO / "train.jsonl"), dev or str(DEMO / "dev.jsonl")
    return Contest("demo", str(DEMO / "base"), train, dev, test, (*SHORT, *requests), cpu=True)


def test_rows_that_nobody_has_seen_are_accepted(tmp_path: Path) -> None:
    found = checked(contest(rows(tmp_path / "test.jsonl", "test.jsonl", 0, 30)))
    assert found.test_rows == 30
    assert found.full_tokens == 3000
    assert found.epoch.rows == 4500
    assert found.recipe.data.test is None


@pytest.mark.parametrize(("source", "first"), [("train.jsonl", 4000), ("dev.jsonl", 5)])
def test_rows_that_are_trained_on_or_selected_by_are_refused(tmp_path: Path, source: str, first: int) -> None:
    test = tmp_path / "test.jsonl"
    seen = Path(rows(tmp_path / "seen.jsonl", source, first, 2)).read_text()
    test.write_text(Path(rows(test, "test.jsonl", 0, 20)).read_text() + seen)
    with pytest.raises(DataError, match=rf"2 of 22 rows of .*test.jsonl are also rows of .*{source}") as caught:
        checked(contest(str(test)))
    assert "give others as TEST" in str(caught.value)


def test_a_row_under_another_id_is_the_same_row(tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    copied = Path(rows(test, "dev.jsonl", 3, 2)).read_text()
    test.write_text(copied.replace('"id": "dev-', '"id": "new-'))
    with pytest.raises(DataError, match="2 of 2 rows"):
        checked(contest(str(test)))


def test_overlap_is_refused_where_the_recipe_would_drop_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 of 20 rows"):
        checked(contest(rows(tmp_path / "test.jsonl", "dev.jsonl", 0, 20), "data.overlap=drop"))


def test_rows_beyond_those_that_are_selected_by_may_judge(tmp_path: Path) -> None:
    assert checked(contest(rows(tmp_path / "test.jsonl", "dev.jsonl", 12, 20))).test_rows == 20


@pytest.mark.parametrize(
    "setting", ["model.name=x", "train=x.jsonl", "data.test=x.jsonl", "budget=9h", "search.seed=3"]
)
def test_settings_that_must_be_equal_for_all_are_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match="all rivals must get the same"):
        contest("test.jsonl", setting).resolved(seed=0)


def test_the_recipe_as_written_is_its_first_starting_point() -> None:
    recipe = load_recipe("demo", ["start.usual.lora_rank=8"], environ={}).recipe
    assert usual(recipe).lora_rank == 8
    assert usual(recipe.model_copy(update={"start": {}})) == recipe.hyperparameters


def test_no_command_is_told_of_the_rows_that_judge() -> None:
    settings = contest("hidden.jsonl").settings(seed=3)
    assert not [setting for setting in settings if "hidden" in setting]
    assert load_recipe("demo", settings, environ={}).recipe.search.seed == 3


def test_a_folder_goes_on_with_its_own_contest_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    claim_folder(out, contest("a.jsonl"))
    claim_folder(out, contest("a.jsonl"))
    with pytest.raises(RunFolderError, match="results with another test"):
        claim_folder(out, contest("b.jsonl"))
    with pytest.raises(RunFolderError, match="holds no head-to-head"):
        claim_folder(tmp_path, contest("a.jsonl"))


def test_commands_join_no_cluster_and_see_no_gpu_on_the_cpu(tmp_path: Path) -> None:
    found = environment(contest("a.jsonl"), {"RAY_ADDRESS": "far:1", "PYTHONPATH": "x"}, tmp_path)
    assert found["RAY_ADDRESS"] == "local"
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    assert found["PYTHONPATH"] == f"{tmp_path}:x"
