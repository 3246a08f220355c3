"""Which trial goes on, which pauses, which is resumed, and what starts anew: pure rules, with no Ray, disk or clock.

A trial may pause at every evaluation, and a paused one goes on from there (freeze-thaw, Swersky et al., arXiv
1406.3896). At each such moment the trial itself, every paused one and the best configuration not tried yet are compared
by their acquisition values (`orchestrator.scheduling.acquisition`): the expected improvement on the best loss by the
end of the trial, divided by the time to get there. The loss at the end is predicted by
`orchestrator.scheduling.curve_model`, which learns from the search's own curves how far early losses are to be trusted.
So no threshold is set beforehand: where early losses tell much, most trials pause at their first evaluation, as in
successive halving (Li et al., arXiv 1810.05934) but with a way back; where they mislead, forecasts stay wide and trials
go on. Near the end of the search a trial is judged by the loss that it can still reach.

A starting point of the recipe is compared like all others until half of the search is over (or as much as leaves room
for it and one trial more); then it is completed before all else, as the winner is compared with it. If nothing is
complete and time is running out, the most promising trial that can still be completed goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.scheduling.acquisition import AcquisitionRanker
from orchestrator.scheduling.completion import CompletionGuard
from orchestrator.scheduling.curve_model import Forecast
from orchestrator.scheduling.proposer import Proposer
from orchestrator.scheduling.surrogate import Surrogate
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
    """Told of every change of a trial, asked at every evaluation and for every free slot.

    `only`: the configurations that may be tried, each once; None: all of the space.
    """

    def __init__(
        self,
        space: Mapping[str, Dimension],
        settings: SearchSettings,
        only: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        random = np.random.default_rng(settings.seed)
        self._surrogate = Surrogate(space, only)
        self._ranker = AcquisitionRanker(self._surrogate, random)
        self._proposer = Proposer(self._surrogate, random)
        self._completion = CompletionGuard(self._surrogate)

    def set_base_loss(self, base_eval_loss: float) -> None:
        """Set the base model's loss in nats, from which all trials come down."""
        self._surrogate.curve_model.base_loss = base_eval_loss

    def update(self, view: TrialView) -> None:
        """Record a new trial, or what has changed of one."""
        old = self._surrogate.observe(view)
        self._ranker.observe(view, old)
        self._completion.observe(view)

    def should_continue(self, trial_id: str, budget: BudgetState) -> ContinueDecision:
        """Decide at an evaluation of a running trial whether it goes on or pauses."""
        due = self._completion.due_starts(budget)
        if any(each.trial_id == trial_id for each in due):
            return ContinueDecision(True, "a starting point has to be complete by the end")
        if any(each.state is State.PAUSED for each in due):
            return ContinueDecision(False, "a starting point has to be completed")
        needed = self._completion.needed(budget)
        if needed is not None:
            name = needed.trial_id
            reason = "it's the one to be completed" if name == trial_id else f"{name} has to be completed in time"
            return ContinueDecision(name == trial_id or needed.state is State.RUNNING, reason)
        own = self._ranker.value_of(trial_id, budget)
        paused = self._ranker.best_paused(budget)
        if paused is not None and paused[1] > max(own, self._ranker.new_trial_value(budget)):
            return ContinueDecision(False, f"trial {paused[0]} looks more promising")
        if self._ranker.new_trial_value(budget) > own:
            return ContinueDecision(False, "a new configuration looks more promising")
        return ContinueDecision(True, "the most promising")

    def choose_next(self, budget: BudgetState) -> Next:
        """Choose a paused trial, or a new configuration, for a free slot."""
        if budget.seconds_left <= budget.seconds_start:
            return Idle("the time for training is over")
        for each in self._completion.due_starts(budget):
            if each.state is State.PAUSED:
                return Resume(each.trial_id)
        needed = self._completion.needed(budget)
        if needed is not None and needed.state is State.PAUSED:
            return Resume(needed.trial_id)
        paused = self._ranker.best_paused(budget)
        if paused is not None and paused[1] >= self._ranker.new_trial_value(budget):
            return Resume(paused[0])
        if not self._surrogate.history.has_untried:
            return Idle("nothing is paused, and every configuration has been tried")
        return StartNew() if budget.may_start else Idle("nothing is paused, and no new configuration may start")

    def refit(self, budget: BudgetState) -> None:
        """Refit the models and compute all values, at a moment at which no trial waits for a decision."""
        self._ranker.refit(budget)
        self._proposer.prepare()

    def evictable(self, keep: int, budget: BudgetState) -> list[str]:
        """Return the paused trials beyond the `keep` of the highest value, the lowest last; no starting points.

        Disk is bounded by it.
        """
        return [name for name in self._ranker.paused(budget)[keep:] if not self._surrogate.views[name].is_start]

    def forecast(self, trial_id: str) -> Forecast | None:
        """Predict the loss of a trial at its end; None before its first evaluation."""
        return self._surrogate.forecast(trial_id)

    def propose(self, seed: int) -> dict[str, Any]:
        """Return the hyperparameters of the next new configuration, as in the space; the same for the same seed."""
        return self._proposer.propose(seed)
