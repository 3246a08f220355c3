"""New configurations to choose from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from orchestrator.scheduling.encoding import Array

Alike = Callable[[Array, Array], Array]
"""How alike configurations are: (len(x), len(others)), 0 to 1."""


class CandidatePool:
    """Draws (count, dimensions), their coordinates `x`, and what each is worth; none that is like a taken one."""

    def __init__(self, draws: Array, x: Array, worth: Array, alike: Alike) -> None:
        self._draws, self._x, self._worth, self._alike = draws, x, worth, alike
        self._is_taken = np.zeros(len(draws), dtype=bool)

    def penalise_similar(self, others: Array) -> None:
        """What is like these configurations (coordinates) is worth less: they run already, and would tell the same."""
        if len(others):
            self._worth = self._worth * (1 - self._alike(self._x, others).max(1))

    def pop_best(self) -> Array:
        """The draw that is worth most."""
        best = int(np.argmax(np.where(self._is_taken, -1.0, self._worth)))
        self.penalise_similar(self._x[best : best + 1])
        self._is_taken[best] = True
        return np.asarray(self._draws[best])

    @property
    def popped(self) -> int:
        """How many have been."""
        return int(self._is_taken.sum())

    @property
    def is_exhausted(self) -> bool:
        """Whether all have been taken."""
        return bool(self._is_taken.all())
