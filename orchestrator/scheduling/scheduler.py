"""Interface of schedulers: which trial goes on at an evaluation, and what takes a free slot."""

from __future__ import annotations

from typing import Protocol

from orchestrator.scheduling.types import BudgetState, ContinueDecision, Next
from orchestrator.surrogate.trial_view import TrialView


class Scheduler(Protocol):
    """Scheduler of one search. Pure: no Ray, disk or clock; rebuilt after a restart from the views of all trials."""

    def update(self, view: TrialView, old: TrialView | None) -> None:
        """Record a new trial, or what has changed of one since it was `old`."""

    def should_continue(self, trial_id: str, budget: BudgetState) -> ContinueDecision:
        """Decide at an evaluation of a running trial whether it goes on or pauses."""

    def choose_next(self, budget: BudgetState) -> Next:
        """Choose a paused trial, or a new configuration, for a free slot."""

    def evictable(self, keep: int, budget: BudgetState) -> dict[str, str]:
        """Return the paused trials to end, with the reason: those stopped, and the worst beyond the `keep` best."""

    def refit(self, budget: BudgetState) -> None:
        """Do deferred work; called while no trial waits for a decision."""
