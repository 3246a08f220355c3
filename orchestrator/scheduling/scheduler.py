"""Freeze-thaw scheduler: decides which trial goes on, pauses, resumes or starts. Pure: no Ray, disk or clock.

A trial may pause at every evaluation, and a paused one resumes from there (freeze-thaw, Swersky et al., arXiv
1406.3896). At an evaluation the scheduler compares the trial, every paused one and the best untried configuration.
It compares their acquisition values (`orchestrator.scheduling.acquisition`): the expected improvement on the best loss
by the end of the trial, divided by the time to get there. `orchestrator.scheduling.curve_model` predicts the final
loss, and learns from the search's own curves how informative early losses are.

So no threshold is set beforehand. Where early losses are informative, most trials pause at their first evaluation. That
resembles successive halving (Li et al., arXiv 1810.05934), except that a paused trial can resume. Where early losses
mislead, predictions stay wide and trials go on. Near the end a trial counts with the loss that it can still reach.

Starting points of the recipe are compared like all others in the first half of the training time. Then, or earlier if
completing them and one full trial more takes all the time left, they are completed before all else, because the winner
is compared with them. If no trial is complete near the end, the most promising one that still can be goes on.
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
from orchestrator.scheduling.types import BudgetState, ContinueDecision, Idle, Next, Resume, StartNew, TrialView
from search_spaces.schema import Dimension, SearchSettings
from trials.state import TrialState

__all__ = [
    "BudgetState",
    "ContinueDecision",
    "FreezeThawScheduler",
    "Idle",
    "Next",
    "Resume",
    "StartNew",
    "TrialView",
]


class FreezeThawScheduler:
    """Scheduler of one search: gets every change of a trial, decides at every evaluation and for every free slot.

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
        """Set the base model's loss in nats per token, at which every trial starts."""
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
        if any(each.state is TrialState.PAUSED for each in due):
            return ContinueDecision(False, "a starting point has to be completed")
        needed = self._completion.needed(budget)
        if needed is not None:
            name = needed.trial_id
            reason = "it's the one to be completed" if name == trial_id else f"{name} has to be completed in time"
            return ContinueDecision(name == trial_id or needed.state is TrialState.RUNNING, reason)
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
            if each.state is TrialState.PAUSED:
                return Resume(each.trial_id)
        needed = self._completion.needed(budget)
        if needed is not None and needed.state is TrialState.PAUSED:
            return Resume(needed.trial_id)
        paused = self._ranker.best_paused(budget)
        if paused is not None and paused[1] >= self._ranker.new_trial_value(budget):
            return Resume(paused[0])
        if not self._surrogate.history.has_untried:
            return Idle("nothing is paused, and every configuration has been tried")
        return StartNew() if budget.may_start else Idle("nothing is paused, and no new configuration may start")

    def refit(self, budget: BudgetState) -> None:
        """Refit the models and compute all values; to be called while no trial waits for a decision."""
        self._ranker.refit(budget)
        self._proposer.prepare()

    def evictable(self, keep: int, budget: BudgetState) -> list[str]:
        """Return the paused trials beyond the `keep` of the highest value, the lowest last; no starting points.

        The controller ends them, so that their checkpoints do not fill the disk.
        """
        return [name for name in self._ranker.paused(budget)[keep:] if not self._surrogate.views[name].is_start]

    def forecast(self, trial_id: str) -> Forecast | None:
        """Predict the loss of a trial at its end; None before its first evaluation."""
        return self._surrogate.forecast(trial_id)

    def propose(self, seed: int) -> dict[str, Any]:
        """Return the hyperparameters of the next new configuration, as in the space; the same for the same seed."""
        return self._proposer.propose(seed)
