"""Trials that are never paused, so that a search soon knows what early losses say about final ones.

Under a schedule that anneals the learning rate, most progress comes late, and early losses favour slow rates. A search
that pauses every trial early never sees that, and its forecasts stay as sure as they are wrong.
"""

from __future__ import annotations

from orchestrator.scheduling.types import BudgetState
from orchestrator.surrogate.model import SPREAD_FIRST, Surrogate
from orchestrator.surrogate.rate_schedule import RATE
from orchestrator.surrogate.trial_view import TrialView

_ROOM = 8
"""Number of full trials for which the whole search must have time, as two of them are trained to their end."""


class Evidence:
    """Of the first trials, those with the slowest and the fastest learning rate, of a search with time for eight."""

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate = surrogate
        self._first: dict[str, TrialView] = {}

    def observe(self, view: TrialView) -> None:
        """Record a new trial, or what has changed of one."""
        if view.trial_id in self._first or len(self._surrogate.views) <= SPREAD_FIRST:
            self._first[view.trial_id] = view

    def unfinished(self, budget: BudgetState) -> list[TrialView]:
        """Return the trials that must not be paused, or have to be resumed, until they are complete.

        One that can't be completed in time any more would show nothing.
        """
        if budget.seconds * budget.slots < _ROOM * budget.seconds_full:
            return []
        sound = [view for view in self._first.values() if not view.state.is_infeasible and RATE in view.values]
        if not sound:
            return []
        ends = {each.trial_id: each for each in (min(sound, key=_rate), max(sound, key=_rate))}
        left = budget.seconds_left / budget.seconds_full
        return [view for view in ends.values() if not view.state.is_terminal and view.to_do * view.pace <= left]


def _rate(view: TrialView) -> float:
    return float(view.values[RATE])
