"""Search policy: the scheduler that the recipe names, and what holds under every scheduler.

Starting points of the recipe are treated like all other trials in the first half of the training time. Then, or earlier
if completing them and one full trial more takes all the time left, they are completed before all else, because the
winner is compared with them. If no trial is complete near the end, the one with the best prediction that still can be
goes on.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.scheduling.completion import CompletionGuard
from orchestrator.scheduling.freeze_thaw import FreezeThawScheduler
from orchestrator.scheduling.promoting import Hyperband
from orchestrator.scheduling.scheduler import Scheduler
from orchestrator.scheduling.stopping import Asha, MedianRule, NoPruning
from orchestrator.scheduling.types import BudgetState, ContinueDecision, Idle, Next, Resume
from orchestrator.surrogate.curve_model import Forecast
from orchestrator.surrogate.model import Surrogate
from orchestrator.surrogate.trial_view import TrialView
from search_spaces.schema import SearchSettings
from trials.state import TrialState


class SearchPolicy:
    """Policy of one search: gets every change of a trial, decides at every evaluation and for every free slot."""

    def __init__(self, surrogate: Surrogate, settings: SearchSettings) -> None:
        self._surrogate = surrogate
        self._scheduler = make_scheduler(surrogate, settings)
        self._completion = CompletionGuard(surrogate)

    def update(self, view: TrialView) -> None:
        """Record a new trial, or what has changed of one."""
        old = self._surrogate.observe(view)
        self._scheduler.update(view, old)
        self._completion.observe(view)

    def should_continue(self, trial_id: str, budget: BudgetState) -> ContinueDecision:
        """Decide at an evaluation of a running trial whether it goes on or pauses."""
        due = self._completion.due_starts(budget)
        if any(each.trial_id == trial_id for each in due):
            return ContinueDecision(True, "a starting point has to be complete by the end")
        if any(each.state is TrialState.PAUSED for each in due):
            return ContinueDecision(False, "a starting point has to be completed")
        needed = self._completion.needed(budget)
        if needed is not None and needed.trial_id == trial_id:
            return ContinueDecision(True, "it's the one to be completed")
        if needed is not None and needed.state is TrialState.PAUSED:
            return ContinueDecision(False, f"{needed.trial_id} has to be completed in time")
        return self._scheduler.should_continue(trial_id, self._with_untried(budget))

    def choose_next(self, budget: BudgetState) -> Next:
        """Choose a paused trial, or a new configuration, for a free slot."""
        if budget.seconds_left <= budget.seconds_start:
            return Idle("the time for training is over")
        for each in self._completion.due_starts(budget):
            if each.state is TrialState.PAUSED:
                return Resume(each.trial_id)
        needed = self._completion.needed(budget)
        if needed is not None and needed.state is TrialState.PAUSED:
            return Resume(needed.trial_id)
        choice = self._scheduler.choose_next(self._with_untried(budget))
        if isinstance(choice, Idle) and not self._surrogate.history.has_untried:
            return Idle("nothing is paused, and every configuration has been tried")
        return choice

    def refit(self, budget: BudgetState) -> None:
        """Do deferred work; to be called while no trial waits for a decision."""
        self._scheduler.refit(budget)

    def evictable(self, keep: int, budget: BudgetState) -> dict[str, str]:
        """Return the paused trials to end, with the reason; no starting points.

        The controller ends them, so that their checkpoints do not fill the disk.
        """
        found = self._scheduler.evictable(keep, budget)
        return {name: reason for name, reason in found.items() if not self._surrogate.views[name].is_start}

    def forecast(self, trial_id: str) -> Forecast | None:
        """Predict the loss of a trial at its end; None before its first evaluation."""
        return self._surrogate.forecast(trial_id)

    def _with_untried(self, budget: BudgetState) -> BudgetState:
        """Return the budget, without new configurations if all of the space has been tried."""
        return budget if self._surrogate.history.has_untried else replace(budget, may_start=False)


def make_scheduler(surrogate: Surrogate, settings: SearchSettings) -> Scheduler:
    """Return the scheduler that the settings name."""
    factor = settings.reduction_factor
    match settings.scheduler:
        case "none":
            return NoPruning()
        case "median":
            return MedianRule()
        case "asha":
            return Asha(factor)
        case "asha_promote":
            return Hyperband(factor, most=1)
        case "hyperband":
            return Hyperband(factor)
        case _:
            return FreezeThawScheduler(surrogate, settings.seed)
