"""Rungs of successive halving: fractions of a full trial at which trials are compared."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from orchestrator.scheduling.types import BudgetState
from orchestrator.surrogate.trial_view import TrialView


def rung_fractions(budget: BudgetState, factor: int, skipped: int = 0) -> list[float]:
    """Return the rungs below a full trial, ascending; the lowest is the first evaluation times `factor`^`skipped`."""
    rungs, fraction = [], budget.evaluation_point * factor**skipped
    while fraction < 1 - budget.evaluation_point / 2:
        rungs.append(fraction)
        fraction *= factor
    return rungs


def evaluation_fractions(budget: BudgetState) -> list[float]:
    """Return the fractions of a full trial at which trials are evaluated, but for the last."""
    return [number * budget.evaluation_point for number in range(1, round(1 / budget.evaluation_point))]


class RungTable:
    """Losses of all trials at each rung, sorted: the lowest loss of a trial when it had reached the rung.

    Optimizer steps don't end exactly at a number of tokens, so `tolerance` of a full trial may be missing.
    """

    def __init__(self, fractions: Sequence[float], tolerance: float) -> None:
        self.fractions = list(fractions)
        self._tolerance = tolerance
        self._losses: list[dict[str, float]] = [{} for _ in fractions]
        self._sorted: list[list[tuple[float, str]]] = [[] for _ in fractions]

    def record(self, view: TrialView) -> None:
        """Record a trial at the rungs that it has reached; at each, its first loss there counts."""
        for rung, fraction in enumerate(self.fractions):
            if view.trial_id in self._losses[rung]:
                continue
            loss = next((loss for at, loss in view.points if at >= fraction - self._tolerance), None)
            if loss is None:
                return
            self._losses[rung][view.trial_id] = loss
            bisect.insort(self._sorted[rung], (loss, view.trial_id))

    def highest(self, trial_id: str) -> int | None:
        """Return the number of the highest rung that a trial has reached; None: it has reached none."""
        reached = [rung for rung, losses in enumerate(self._losses) if trial_id in losses]
        return reached[-1] if reached else None

    def is_at(self, view: TrialView) -> bool:
        """Whether a trial stands at its highest rung, and has not been evaluated beyond it."""
        rung = self.highest(view.trial_id)
        return rung is not None and view.fraction < self.fractions[rung] + self._tolerance

    def loss(self, rung: int, trial_id: str) -> float:
        """Return a trial's loss at a rung that it has reached."""
        return self._losses[rung][trial_id]

    def ranked(self, rung: int) -> Sequence[tuple[float, str]]:
        """Return (loss, trial id) of all trials that have reached a rung, the lowest loss first."""
        return self._sorted[rung]

    def others(self, rung: int, trial_id: str) -> list[float]:
        """Return the losses of all other trials at a rung, ascending."""
        return [loss for loss, name in self._sorted[rung] if name != trial_id]
