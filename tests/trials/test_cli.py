"""What all command lines do with an error and with libraries' noise."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from trials.cli import number_within, run_command, whole_number
from trials.console.line_log import LineLog
from trials.console.unexpected import keep_tracebacks_in
from trials.errors import DataError, NothingToExport

STAMPED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z .")


def _raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("no rows"), 2, "error: no rows\n"),
        (NothingToExport("none is better"), 3, "error: none is better\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_on_purpose_is_one_message_and_a_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: _raising(error)) == code
    assert capsys.readouterr().err == message


def test_the_command_gives_the_code() -> None:
    assert run_command(lambda: 7) == 7


def test_a_bug_is_one_message_and_its_traceback_is_in_a_private_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: 1 // 0) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: an unexpected ZeroDivisionError: integer division or modulo by zero. ")
    assert said.count("\n") == 1
    path = Path(said.strip().rsplit(" ", 1)[1])
    assert path.stat().st_mode & 0o777 == 0o600
    assert "Traceback (most recent call last)" in path.read_text(encoding="utf-8")
    path.unlink()


def test_a_bug_s_traceback_goes_to_the_log_of_what_the_command_works_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = LineLog(tmp_path / "logs" / "search.log")

    def command() -> int:
        keep_tracebacks_in(log)
        return int({}["x"])

    assert run_command(command) == 1
    assert capsys.readouterr().err == f"error: an unexpected KeyError: 'x'. Its traceback is in {log.path}\n"
    assert all(STAMPED.match(line) for line in log.path.read_text().splitlines())
    assert "KeyError: 'x'" in log.path.read_text()
    assert run_command(lambda: 1 // 0) == 1  # the next command has nothing to do with that folder
    assert "ZeroDivisionError" not in log.path.read_text()


@pytest.mark.parametrize(("kind", "text"), [(whole_number(2), "2"), (number_within(0.0, 1.0), "1e-1")])
def test_an_option_within_its_bounds(kind: Callable[[str], float], text: str) -> None:
    assert kind(text) == float(text)


@pytest.mark.parametrize("text", ["1", "-3", "2.0", "x", ""])
def test_no_whole_number(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not allowed\. Give a whole number of at least 2"):
        whole_number(2)(text)


@pytest.mark.parametrize("text", ["-0.1", "1.1", "nan", "x", ""])
def test_no_number_within(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not allowed\. Give a number from 0 to 1"):
        number_within(0.0, 1.0)(text)


def test_only_our_own_loggers_speak_below_error() -> None:
    run_command(lambda: 0)
    assert logging.getLogger("trials.data.dataset").isEnabledFor(logging.INFO)
    assert not logging.getLogger("transformers.some.module").isEnabledFor(logging.INFO)
