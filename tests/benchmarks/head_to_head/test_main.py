"""The command line: wrong input is refused in one line, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.head_to_head.__main__ import contest_of, main, parser, several
from benchmarks.head_to_head.rivals import Rival
from search_spaces.loader import load_recipe
from tests.support.cli import ROOT

DEMO = ROOT / "search_spaces" / "demo"
ROWS = [str(DEMO / "base"), str(DEMO / "train.jsonl"), str(DEMO / "dev.jsonl")]
TEST = str(DEMO / "test.jsonl")
NO_SPACE = [f"space.{name}=null" for name in load_recipe("demo", [], environ={}).recipe.space]


def test_options() -> None:
    given = parser().parse_args([*ROWS, TEST, "--budgets", "4m,8m,4m", "--seeds", "1,0", "--rivals", "ours, stock"])
    assert given.budgets == [240, 480]
    assert given.seeds == [1, 0]
    assert given.rivals == [Rival.OURS, Rival.STOCK]
    assert given.recipe == "demo"
    assert parser().parse_args([*ROWS, TEST, "--budgets", "4m"]).rivals == list(Rival)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budgets", "4"], "is no duration"),
        (["--budgets", "4m", "--rivals", "theirs"], "theirs"),
        (["--budgets", "4m", "--seeds", "-1"], "seed"),
        (["--budgets", "4m", "--gpu-memory-gib", "much"], "much"),
        ([], "--budgets"),
    ],
)
def test_wrong_options_are_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*ROWS, TEST, *options])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([*ROWS, ROWS[2]], [], "are also rows of"),
        ([*ROWS, "nowhere.jsonl"], [], "nowhere.jsonl"),
        (["/nowhere", *ROWS[1:], TEST], [], "/nowhere"),
        ([*ROWS, TEST], ["--recipe", "dem"], "did you mean 'demo'?"),
        ([*ROWS, TEST], ["--set", "learning_rat=1"], "learning_rat"),
        ([*ROWS, TEST], ["--set", *NO_SPACE], "nothing to search"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(
    rows: list[str],
    options: list[str],
    said: str,
    in_tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main([*rows, "--budgets", "4m", "--cpu", "--out", "out", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error: ") == 1
    assert not (in_tmp_path / "out").exists()


def test_without_a_gpu_the_cpu_must_be_asked_for(
    in_tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main([*ROWS, TEST, "--budgets", "4m"]) == 2
    assert "Give --cpu" in capsys.readouterr().err


def test_names_are_absolute_so_that_it_can_go_on_from_anywhere(in_tmp_path: Path) -> None:
    (in_tmp_path / "test.jsonl").write_text("")
    rows = ["HuggingFaceTB/SmolLM2-135M", *ROWS[1:], "test.jsonl[:24]"]
    found = contest_of(parser().parse_args([*rows, "--budgets", "4m", "--recipe", "mine.yaml"]))
    assert (found.model, found.test) == (rows[0], f"{in_tmp_path / 'test.jsonl'}[:24]")
    assert found.recipe == str(in_tmp_path / "mine.yaml")


def test_repeated_values_are_there_once() -> None:
    assert several(int)("3,1,3") == [3, 1]
