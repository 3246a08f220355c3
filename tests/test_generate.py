"""The command that asks an adapter or a model."""

from __future__ import annotations

import io

import pytest

from trials.data import TrialData
from trials.generate import main
from trials.records import TrialRecord


@pytest.fixture
def adapter(small_trial: TrialRecord) -> str:
    return str(small_trial.folder / "adapter")


def _answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*arguments, "--max-new-tokens", "16"]) == 0
    return capsys.readouterr().out


def test_greedy_is_one_line_and_the_same_twice(
    adapter: str, small_data: TrialData, capsys: pytest.CaptureFixture[str]
) -> None:
    question = [adapter, "--prompt", small_data.eval.examples[0].prompt]
    first = _answer(question, capsys)
    assert first.strip()
    assert first.count("\n") == 1
    assert _answer(question, capsys) == first


def test_the_prompt_can_come_from_standard_input(
    adapter: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _answer([adapter, "--prompt", "Is it so?"], capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it so?"))
    assert _answer([adapter, "--prompt", "-"], capsys) == asked


def test_a_temperature_samples_by_the_seed(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    hot = [adapter, "--prompt", "Is it so?", "--temperature", "3.0"]
    one = _answer([*hot, "--seed", "1"], capsys)
    assert _answer([*hot, "--seed", "1"], capsys) == one
    assert _answer([*hot, "--seed", "2"], capsys) != one


def test_an_empty_prompt_ends_with_2(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([adapter, "--prompt", "  "]) == 2
    assert capsys.readouterr().err == "error: the prompt is empty. Give --prompt some text.\n"


@pytest.mark.parametrize("option", [["--temperature", "-1"], ["--max-new-tokens", "0"], ["--top-p", "0"]])
def test_options_out_of_bounds_end_with_2(adapter: str, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([adapter, "--prompt", "x", *option])
    assert ended.value.code == 2
    assert f"error: argument {option[0]}: '{option[1]}' is not allowed. Give a" in capsys.readouterr().err
