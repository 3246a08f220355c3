"""Who goes on, who pauses, who's resumed, and what starts anew: pure rules, with no Ray, disk or clock.

A trial may pause at every evaluation, and a paused one goes on from there. At each such moment all that could have
the machine bid for it: the trial itself, every paused one, and the best configuration not tried yet. A bid is the
expected improvement on the search's best loss by the trial's end, divided by the time that it takes to get there. It
comes from the forecast of the loss at the end (orchestrator.scheduling.curve_model), which learns from the search's own
curves how far early losses are to be trusted. So nothing is set beforehand: where early losses tell much, most trials
pause at their first evaluation, as in successive halving (Li et al., arXiv 1810.05934) but with a way back; where they
mislead, forecasts stay wide and trials go on. Near the end of the search a trial is judged by the loss that it can
still reach, so that time goes to those that finish and win.

A starting point of the recipe bids like all others until half of the search is over (or as much as leaves room for it
and one trial more); then it is completed before all else, as it is what the winner is compared with. If nothing is
complete and time is running out, the most promising trial that can still be completed has the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.scheduling.acquisition import AcquisitionRanker
from orchestrator.scheduling.curve_model import Forecast
from orchestrator.scheduling.types import BudgetState, ContinueDecision, Idle, Next, Resume, StartNew, State, TrialView
from search_spaces.schema import Dimension, SearchSettings

__all__ = [
    "BudgetState",
    "ContinueDecision",
    "FreezeThawScheduler",
    "Idle",
    "Next",
    "Resume",
    "StartNew",
    "State",
    "TrialView",
]


class FreezeThawScheduler:
    """The policy: told of every trial's standing, asked at every evaluation and for every free slot.

    `only`: the configurations that may be tried, each once; None: all of the space.
    """

    def __init__(
        self,
        space: Mapping[str, Dimension],
        settings: SearchSettings,
        only: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._field = AcquisitionRanker(space, settings.seed, only)

    def set_base_loss(self, base_eval_loss: float) -> None:
        """The base model's loss in nats, from which all trials come down."""
        self._field.set_base_loss(base_eval_loss)

    def update(self, view: TrialView) -> None:
        """Takes in a new trial, or what has changed of one."""
        self._field.update(view)

    def should_continue(self, trial_id: str, budget: BudgetState) -> ContinueDecision:
        """At an evaluation of a running trial: on, or pause."""
        due = self._field.due_starts(budget)
        if any(each.trial_id == trial_id for each in due):
            return ContinueDecision(True, "a starting point has to be complete by the end")
        if any(each.state is State.PAUSED for each in due):
            return ContinueDecision(False, "a starting point has to be completed")
        needed = self._needed(budget)
        if needed is not None:
            name = needed.trial_id
            reason = "it's the one to be completed" if name == trial_id else f"{name} has to be completed in time"
            return ContinueDecision(name == trial_id or needed.state is State.RUNNING, reason)
        own = self._field.value_of(trial_id, budget)
        paused = self._field.best_paused(budget)
        if paused is not None and paused[1] > max(own, self._field.new_trial_value(budget)):
            return ContinueDecision(False, f"trial {paused[0]} looks more promising")
        if self._field.new_trial_value(budget) > own:
            return ContinueDecision(False, "a new configuration looks more promising")
        return ContinueDecision(True, "the most promising")

    def choose_next(self, budget: BudgetState) -> Next:
        """For a free slot: a paused trial, or a new configuration."""
        if budget.seconds_left <= budget.seconds_start:
            return Idle("the time for training is over")
        for each in self._field.due_starts(budget):
            if each.state is State.PAUSED:
                return Resume(each.trial_id)
        needed = self._needed(budget)
        if needed is not None and needed.state is State.PAUSED:
            return Resume(needed.trial_id)
        paused = self._field.best_paused(budget)
        if paused is not None and paused[1] >= self._field.new_trial_value(budget):
            return Resume(paused[0])
        if not self._field.has_untried:
            return Idle("nothing is paused, and every configuration has been tried")
        return StartNew() if budget.may_start else Idle("nothing is paused, and no new configuration may start")

    def refit(self, budget: BudgetState) -> None:
        """Takes into account what was told, as far as it waited for a moment in which nobody waits for an answer."""
        self._field.refit(budget)

    def evictable(self, keep: int, budget: BudgetState) -> list[str]:
        """Paused trials beyond the `keep` most promising, the least promising last; disk is bounded by it.

        Starting points aren't among them.
        """
        return [name for name in self._field.paused(budget)[keep:] if not self._field[name].is_start]

    def forecast(self, trial_id: str) -> Forecast | None:
        """The predicted loss of a trial at its end; None before its first evaluation."""
        return self._field.forecast(trial_id)

    def propose(self, seed: int) -> dict[str, Any]:
        """The hyperparameters of the next new configuration, as in the recipe's space; the same for the same seed."""
        return self._field.propose(seed)

    def _needed(self, budget: BudgetState) -> TrialView | None:
        """The trial that must go on now, lest none be complete when the time is over."""
        return None if self._field.has_complete else self._field.last_chance(budget)
