"""The command that judges an adapter or a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search_spaces.schema import Recipe
from trials.evaluate import main
from trials.records import TrialRecord


@pytest.fixture
def command(small_trial: TrialRecord, small_recipe: Recipe) -> list[str]:
    data = small_recipe.data
    return [str(small_trial.folder / "adapter"), "--data", data.eval, "--rows", str(data.eval_rows)]


def test_an_adapter_has_the_loss_of_its_trial(
    command: list[str], small_trial: TrialRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert main([*command, "--against-base", "--json", str(out)]) == 0
    assert f"eval loss {small_trial.best_eval_loss:.4f} nats per token, 12 rows" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["eval_loss"] == pytest.approx(small_trial.best_eval_loss, abs=5e-5)
    assert len(found["row_losses"]["loss_sums"]) == len(found["row_losses"]["token_counts"]) == 12
    assert found["base"]["base_eval_loss"] - found["eval_loss"] == pytest.approx(found["base"]["difference"])
    assert found["base"]["standard_error"] > 0


def test_labels_are_generated_and_counted(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert main([*command[:-1], "2", "--labels", "--json", str(out)]) == 0
    labels = json.loads(out.read_text())["labels"]
    assert labels["rows"] == 2
    assert labels["accuracy"] + labels["unparsed"] <= 1
    assert f"labels: {labels['accuracy']:.1%} right, {labels['unparsed']:.1%} not parsed" in capsys.readouterr().out


def test_a_plain_model_can_be_judged(
    command: list[str], small_trial: TrialRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([small_trial.config.model.name, *command[1:], "--quantization", "none"]) == 0
    assert "eval loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "absent.jsonl"], "no data file absent.jsonl"),
        (["--max-length-tokens", "20"], "12 of 12 rows are longer than data.max_length_tokens=20"),
    ],
)
def test_bad_input_ends_with_2_and_says_why(
    command: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--format", "poems"], ["--rows", "0"], ["--rows", "-1"], ["--batch-rows", "0"], ["--max-length-tokens", "x"]],
)
def test_options_out_of_bounds_end_with_2(
    command: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, *options])
    assert ended.value.code == 2
    assert f"error: argument {options[0]}: " in capsys.readouterr().err


def test_no_model_ends_with_2(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), *command[1:]]) == 2
    assert f"no model in {tmp_path}" in capsys.readouterr().err
