"""When all GPUs train one trial together: the rule alone, on made-up trials."""

from __future__ import annotations

import pytest

from orchestrator.controller.consolidation import FinalistCandidate, OnAllGpus, finalist

TWO = OnAllGpus(ranks=2, scaling=1.8, change_seconds=60.0)
LEADER, SECOND = FinalistCandidate("0003", 1.0, 1000.0), FinalistCandidate("0002", 1.2, 100.0)


def test_what_is_too_slow_for_one_gpu_and_not_for_two_gets_both() -> None:
    assert finalist([SECOND, LEADER], best_complete=1.1, seconds_left=900.0, together=TWO) == LEADER


@pytest.mark.parametrize(
    ("seconds_left", "why"),
    [(1000.0, "it's complete in time on one"), (680.0, "hardly in time on two"), (300.0, "on two neither")],
)
def test_else_trials_go_on_side_by_side(seconds_left: float, why: str) -> None:
    assert finalist([SECOND, LEADER], 1.1, seconds_left, TWO) is None, why


def test_only_the_most_promising_counts_and_only_if_it_may_win() -> None:
    slow = FinalistCandidate("0004", 1.05, 1000.0)
    assert finalist([slow, FinalistCandidate("0005", 1.0, 10.0)], 1.1, 900.0, TWO) is None
    assert finalist([LEADER], 0.9, 900.0, TWO) is None
    assert finalist([LEADER], None, 900.0, TWO) == LEADER
    assert finalist([], 1.1, 900.0, TWO) is None
