"""The command that asks an adapter or a model."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ROOT, environment
from trials.data.dataset import TrialData
from trials.generate import main
from trials.records.trial_dir import TrialRecord

pytestmark = pytest.mark.slow


@pytest.fixture
def adapter(small_trial: TrialRecord) -> str:
    return str(small_trial.folder / "adapter")


def _answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*arguments, "--max-new-tokens", "16"]) == 0
    return capsys.readouterr().out


def test_greedy_is_one_line_and_the_same_twice(
    adapter: str, small_data: TrialData, capsys: pytest.CaptureFixture[str]
) -> None:
    question = [adapter, "--prompt", small_data.eval.examples[0].prompt_text]
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


@pytest.mark.parametrize("options", [["--sample"], ["--top-k", "50"], ["--top-p", "0.95"], ["--temperature", "0.7"]])
def test_each_way_to_ask_for_sampling_is_the_guides(
    adapter: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    guides = ["--temperature", "0.7", "--top-k", "50", "--top-p", "0.95"]
    question = [adapter, "--prompt", "Is it so?", "--seed", "3"]
    assert _answer([*question, *options], capsys) == _answer([*question, *guides], capsys)


def test_what_is_given_is_used_and_temperature_0_is_greedy(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    question = [adapter, "--prompt", "Is it so?"]
    greedy = _answer(question, capsys)
    assert _answer([*question, "--sample", "--top-k", "1"], capsys) == greedy
    assert _answer([*question, "--temperature", "0"], capsys) == greedy
    assert _answer([*question, "--temperature", "5", "--top-k", "0", "--top-p", "1"], capsys) != greedy


def test_full_is_without_quantisation(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    question = [adapter, "--prompt", "Ada has 27 willows.", "--max-new-tokens", "30"]
    assert _answer([*question, "--full"], capsys) == _answer([*question, "--quantization", "none"], capsys)


def _chat(arguments: list[str], lines: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main([*arguments, "--chat", "--max-new-tokens", "12"]) == 0
    return capsys.readouterr().out


def test_a_chat_answers_line_by_line_and_remembers(
    adapter: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = _chat([adapter], "Ada has 3 willows.\n\nWhy?\n", monkeypatch, capsys).splitlines()
    assert len(both) == 2  # an empty line is no question
    assert _chat([adapter], "Ada has 3 willows.\n/exit\nWhy?\n", monkeypatch, capsys).splitlines() == both[:1]
    assert _chat([adapter], "Why?\n", monkeypatch, capsys).splitlines() != both[1:]
    assert _chat([adapter], "", monkeypatch, capsys) == ""


def test_a_system_message_goes_before_the_conversation(
    adapter: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zephyr = [adapter, "--chat-template", "zephyr"]
    plain = _chat(zephyr, "Why?\n", monkeypatch, capsys)
    assert _chat([*zephyr, "--system", "Ada has 3 willows."], "Why?\n", monkeypatch, capsys) != plain
    assert main([adapter, "--prompt", "Why?", "--system", "You are a pirate."]) == 2
    assert "error: the model's chat template can't render the conversation (" in capsys.readouterr().err


def test_a_chat_on_a_pipe_is_one_answer_a_line_and_nothing_else(adapter: str) -> None:
    command = [sys.executable, "-m", "trials.generate", adapter, "--chat", "--max-new-tokens", "8"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), input="Is it so?\nWhy?", capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 2
    assert "Ctrl-D" not in done.stdout


def test_an_empty_prompt_ends_with_2(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([adapter, "--prompt", "  "]) == 2
    assert capsys.readouterr().err == "error: the prompt is empty. Give --prompt some text.\n"


@pytest.mark.parametrize("option", [["--temperature", "-1"], ["--max-new-tokens", "0"], ["--top-p", "0"]])
def test_options_out_of_bounds_end_with_2(adapter: str, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([adapter, "--prompt", "x", *option])
    assert ended.value.code == 2
    assert f"error: argument {option[0]}: '{option[1]}' is not allowed. Give a" in capsys.readouterr().err


def test_sampling_at_temperature_0_ends_with_2(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([adapter, "--prompt", "x", "--sample", "--temperature", "0"]) == 2
    said = "error: --sample draws tokens, and --temperature 0 never does. Give one of them.\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "options", [[], ["--prompt", "x", "--chat"], ["--prompt", "x", "--full", "--quantization", "nf4"]]
)
def test_contradictions_end_with_2(adapter: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([adapter, *options])
    assert ended.value.code == 2


def test_a_folder_that_is_not_there_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent"), "--prompt", "x"]) == 2
    assert f"error: no model in {tmp_path / 'absent'}: " in capsys.readouterr().err
