"""The pool of candidates: the best comes first, and whoever resembles it loses value."""

from __future__ import annotations

import numpy as np

from orchestrator.sampling.candidates import CandidatePool
from orchestrator.surrogate.encoding import Array

X = np.array([[0.0], [0.05], [1.0]])


def similarity(x: Array, others: Array) -> Array:
    return np.asarray(np.exp(-np.abs(x[:, None, 0] - others[None, :, 0]) / 0.1))


def test_a_near_duplicate_of_what_was_chosen_comes_last() -> None:
    pool = CandidatePool(X, X, np.log([1.0, 0.9, 0.5]), similarity)
    assert [float(pool.pop_best()[0]) for _ in range(3)] == [0.0, 1.0, 0.05]
    assert pool.popped == 3
    assert pool.is_exhausted


def test_what_runs_already_is_penalised() -> None:
    pool = CandidatePool(X, X, np.log([1.0, 0.9, 0.5]), similarity)
    pool.penalise_similar(np.array([[0.0]]))
    assert float(pool.pop_best()[0]) == 1.0
