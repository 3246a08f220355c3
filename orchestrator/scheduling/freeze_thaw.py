"""Freeze-thaw scheduler: decides which trial goes on, pauses, resumes or starts. Pure: no Ray, disk or clock.

A trial may pause at every evaluation, and a paused one resumes from there (freeze-thaw, Swersky et al., arXiv
1406.3896). At an evaluation the scheduler compares the trial, every paused one and the best untried configuration.
It compares their acquisition values (`orchestrator.scheduling.acquisition`): the expected improvement on the best loss
by the end of the trial, divided by the time to get there. `orchestrator.surrogate.curve_model` predicts the final
loss, and learns from the search's own curves how informative early losses are.

So no threshold is set beforehand. Where early losses are informative, most trials pause at their first evaluation. That
resembles successive halving (Li et al., arXiv 1810.05934), except that a paused trial can resume. Where early losses
mislead, predictions stay wide and trials go on. Near the end a trial counts with the loss that it can still reach.
"""

from __future__ import annotations

import numpy as np

from orchestrator.scheduling.acquisition import AcquisitionRanker
from orchestrator.scheduling.evidence import Evidence
from orchestrator.scheduling.types import BudgetState, ContinueDecision, Idle, Next, Resume, StartNew
from orchestrator.surrogate.model import Surrogate
from orchestrator.surrogate.trial_view import TrialView
from trials.state import TrialState


class FreezeThawScheduler:
    """Scheduler that compares acquisition values; `surrogate` has observed every trial before `update` records it."""

    def __init__(self, surrogate: Surrogate, seed: int) -> None:
        self._surrogate = surrogate
        self._ranker = AcquisitionRanker(surrogate, np.random.default_rng(seed))
        self._evidence = Evidence(surrogate)

    def update(self, view: TrialView, old: TrialView | None) -> None:
        """Record a new trial, or what has changed of one since it was `old`."""
        self._ranker.observe(view, old)
        self._evidence.observe(view)

    def should_continue(self, trial_id: str, budget: BudgetState) -> ContinueDecision:
        """Decide at an evaluation of a running trial whether it goes on or pauses."""
        own = self._ranker.value_of(trial_id, budget)
        if any(each.trial_id == trial_id for each in self._evidence.unfinished(budget)):
            return ContinueDecision(True, "its whole curve shows what early losses are worth")
        paused = self._ranker.best_paused(budget)
        if paused is not None and paused[1] > max(own, self._ranker.new_trial_value(budget)):
            return ContinueDecision(False, f"trial {paused[0]} looks more promising")
        if self._ranker.new_trial_value(budget) > own:
            return ContinueDecision(False, "a new configuration looks more promising")
        return ContinueDecision(True, "the most promising")

    def choose_next(self, budget: BudgetState) -> Next:
        """Choose a paused trial, or a new configuration, for a free slot."""
        for each in self._evidence.unfinished(budget):
            if each.state is TrialState.PAUSED and each.points:
                return Resume(each.trial_id)
        paused = self._ranker.best_paused(budget)
        if paused is not None and paused[1] >= self._ranker.new_trial_value(budget):
            return Resume(paused[0])
        return StartNew() if budget.may_start else Idle("nothing is paused, and no new configuration may start")

    def evictable(self, keep: int, budget: BudgetState) -> dict[str, str]:
        """Return the paused trials beyond the `keep` of the highest value, with the reason."""
        reason = f"{keep} other paused trials look more promising"
        return dict.fromkeys(self._ranker.paused(budget)[keep:], reason)

    def refit(self, budget: BudgetState) -> None:
        """Refit the models and compute all values, if enough is new or enough time has passed."""
        self._ranker.refit(budget)
