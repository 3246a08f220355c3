"""What all command lines do with an error and with libraries' noise."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

import pytest

from trials.command_line import number_within, run, whole_number
from trials.errors import DataError, NothingToExport


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
    assert run(lambda: _raising(error)) == code
    assert capsys.readouterr().err == message


def test_the_command_gives_the_code() -> None:
    assert run(lambda: 7) == 7


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


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
    run(lambda: 0)
    assert logging.getLogger("trials.data").isEnabledFor(logging.INFO)
    assert not logging.getLogger("transformers.some.module").isEnabledFor(logging.INFO)
