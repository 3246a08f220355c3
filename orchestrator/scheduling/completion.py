"""Ensures that a complete trial, and every starting point, exists at the end of the search."""

from __future__ import annotations

import heapq

from orchestrator.scheduling.types import BudgetState
from orchestrator.surrogate.model import Surrogate
from orchestrator.surrogate.trial_view import TrialView

_LATE = 0.5
"""Share of the time for training from which on a starting point is completed before all else."""
_SLACK = 1.5
"""Number of evaluation intervals by which the last trial that can be completed is begun early."""
_MOST_FORECAST = 50


class CompletionGuard:
    """Names the trials that must be trained now, because they would otherwise be incomplete at the end."""

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate = surrogate
        self._starts: dict[str, TrialView] = {}
        """Starting points that can go on."""

    def observe(self, view: TrialView) -> None:
        """Record a new trial, or what has changed of one."""
        self._starts.pop(view.trial_id, None)
        if view.is_start and not view.state.is_terminal:
            self._starts[view.trial_id] = view

    def due_starts(self, budget: BudgetState) -> list[TrialView]:
        """Return the starting points if they must go on now to be complete by the end; else an empty list."""
        if not self._starts:
            return []
        left = [each.to_do for each in self._starts.values()]
        needed = max(*left, sum(left) / budget.slots) + 1 + budget.evaluation_point
        is_late = budget.seconds_left <= max(_LATE * budget.seconds, needed * budget.seconds_full)
        return list(self._starts.values()) if is_late else []

    def needed(self, budget: BudgetState) -> TrialView | None:
        """Return the trial that must go on now so that one is complete at the end; None: there is time, or none can.

        It is the trial with the best loss expected at its end among those that can still be completed.
        """
        if self._surrogate.has_complete:
            return None
        left = (budget.seconds_left - budget.seconds_start) / budget.seconds_full
        if left > 1 + budget.evaluation_point:
            return None
        can = [each for each in self._surrogate.views.values() if not each.state.is_terminal]
        can = [each for each in can if each.points and each.to_do <= left]
        can = heapq.nsmallest(_MOST_FORECAST, can, key=lambda each: each.points[-1][1])
        forecasts = [(self._surrogate.forecast(each.trial_id), each) for each in can]
        expected = [(forecast.mean, each) for forecast, each in forecasts if forecast is not None]
        if not expected:
            return None
        best = min(expected, key=lambda pair: pair[0])[1]
        return best if best.to_do + _SLACK * budget.evaluation_point >= left else None
