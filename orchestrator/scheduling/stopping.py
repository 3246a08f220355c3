"""Schedulers that stop a trial for good: none, the median rule, and asynchronous successive halving (ASHA).

A stopped trial is never resumed, unless it is a starting point, which `orchestrator.scheduling.completion` completes.
"""

from __future__ import annotations

from statistics import median

import numpy as np

from orchestrator.scheduling.rungs import RungTable, evaluation_fractions, rung_fractions
from orchestrator.scheduling.types import BudgetState, ContinueDecision, Idle, Next, Resume, StartNew
from orchestrator.surrogate.trial_view import TrialView
from trials.state import TrialState

_LEAST_TRIALS = 5
"""Number of other trials that the median rule needs, as Optuna's MedianPruner has it."""


class NoPruning:
    """Trains every trial to its end; base of the schedulers that stop trials."""

    def __init__(self) -> None:
        self._views: dict[str, TrialView] = {}
        self._cut_off: dict[str, None] = {}
        """Paused trials that this scheduler didn't stop: they go on."""
        self._stopped: dict[str, str] = {}
        """Reason for each paused trial that this scheduler stopped."""
        self._table: RungTable | None = None

    def update(self, view: TrialView, old: TrialView | None) -> None:
        """Record a new trial, or what has changed of one since it was `old`."""
        name = view.trial_id
        self._views[name] = view
        self._cut_off.pop(name, None)
        if view.state is not TrialState.PAUSED:
            self._stopped.pop(name, None)
        elif name not in self._stopped:
            self._cut_off[name] = None
        if self._table is not None:
            self._table.record(view)

    def should_continue(self, trial_id: str, budget: BudgetState) -> ContinueDecision:
        """Decide at an evaluation of a running trial whether it goes on or is stopped."""
        reason = self._reason_to_stop(self._views[trial_id], budget)
        if reason is None:
            return ContinueDecision(True, "no rule stops it")
        self._stopped[trial_id] = reason
        return ContinueDecision(False, reason)

    def choose_next(self, budget: BudgetState) -> Next:
        """Choose a trial that was cut off, or a new configuration, for a free slot."""
        if self._cut_off:
            return Resume(next(iter(self._cut_off)))
        return StartNew() if budget.may_start else Idle("no trial was cut off, and no new configuration may start")

    def evictable(self, keep: int, budget: BudgetState) -> dict[str, str]:
        """Return the trials that were stopped, with the reason."""
        return {name: why for name, why in self._stopped.items() if self._views[name].state is TrialState.PAUSED}

    def refit(self, budget: BudgetState) -> None:
        """Do nothing: there is no model."""

    def _reason_to_stop(self, view: TrialView, budget: BudgetState) -> str | None:
        return None

    def _losses(self, budget: BudgetState) -> RungTable:
        """Return the losses of all trials at the rungs, which the first budget tells."""
        if self._table is None:
            self._table = RungTable(self._fractions(budget), budget.evaluation_point / 2)
            for view in self._views.values():
                self._table.record(view)
        return self._table

    def _fractions(self, budget: BudgetState) -> list[float]:
        return evaluation_fractions(budget)


class MedianRule(NoPruning):
    """Stops a trial whose loss is above the median of the others' at the same fraction (Golovin et al., Vizier, 2017).

    Losses are the lowest up to that fraction, as with Optuna's MedianPruner.
    """

    def _reason_to_stop(self, view: TrialView, budget: BudgetState) -> str | None:
        table = self._losses(budget)
        rung = table.highest(view.trial_id)
        if rung is None:
            return None
        others = table.others(rung, view.trial_id)
        if len(others) < _LEAST_TRIALS or table.loss(rung, view.trial_id) <= median(others):
            return None
        return f"its loss is above the median of {len(others)} trials at {table.fractions[rung]:.0%} of a full trial"


class Asha(NoPruning):
    """Asynchronous successive halving that stops (Li et al., arXiv 1810.05934), by the rule of Ray's ASHAScheduler.

    At the highest rung that a trial has reached, its loss must not be above the quantile 1 / `factor` of those that
    other trials have there. The lowest rung is the first evaluation.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self._factor = factor

    def _fractions(self, budget: BudgetState) -> list[float]:
        return rung_fractions(budget, self._factor)

    def _reason_to_stop(self, view: TrialView, budget: BudgetState) -> str | None:
        table = self._losses(budget)
        rung = table.highest(view.trial_id)
        if rung is None or not table.is_at(view):
            return None
        others = table.others(rung, view.trial_id)
        if not others or table.loss(rung, view.trial_id) <= np.quantile(others, 1 / self._factor):
            return None
        at = f"{table.fractions[rung]:.0%} of a full trial"
        return f"it isn't among the best 1/{self._factor} of {len(others) + 1} trials at {at}"
