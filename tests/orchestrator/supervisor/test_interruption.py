"""What becomes of SIGINT and SIGTERM between, during and after the sessions of a search: real signals."""

from __future__ import annotations

import os
import signal
import time

import pytest

from orchestrator.supervisor.interruption import interruptible

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_in_hand_at_the_end_is_completed_once(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with interruptible() as interruption, interruption.finishing():
        send(number)
    assert interruption.is_asked
    assert "the export in hand is completed first" in capsys.readouterr().out


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_it_at_once(number: signal.Signals) -> None:
    with interruptible() as interruption, pytest.raises(KeyboardInterrupt), interruption.finishing():
        send(number, number)
    with interruptible() as interruption:
        send(number)  # which stops the search, and has nothing to do with its end
        with interruption.finishing():
            send(number)
        assert interruption.times == 2


def test_a_wait_ends_as_soon_as_the_search_is_to_stop() -> None:
    began = time.monotonic()
    with interruptible() as interruption:
        send(signal.SIGTERM)
        interruption.sleep(600)
    assert time.monotonic() - began < 60


def test_afterwards_signals_are_what_they_were() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruptible():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
