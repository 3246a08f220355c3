"""Acquisition values of trials: logarithm of the expected improvement per unit of time.

The acquisition value of a trial is the expected improvement on the best loss by its end (Jones, Schonlau and Welch
1998), divided by the time to get there at the trial's own pace, starting or resuming included. The unit of time is a
full trial of the mean pace. Values are logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.scheduling.proposal_discount import ProposalDiscount
from orchestrator.scheduling.types import BudgetState
from orchestrator.surrogate.encoding import Array
from orchestrator.surrogate.model import SPREAD_FIRST, Surrogate
from orchestrator.surrogate.trial_view import TrialView
from trials.state import TrialState

_SAMPLE = 100
"""Number of random configurations that represent all that could start."""
_SMALLEST_STEP = 1e-3
_MOST_VALUED = 200


class AcquisitionRanker:
    """Acquisition values of running trials, of paused ones, and of the best configuration not tried yet.

    With many slots no decision waits for them: `refit` is called when there is time for it.
    """

    def __init__(self, surrogate: Surrogate, random: np.random.Generator) -> None:
        self._surrogate = surrogate
        self._sample = surrogate.encoder.sample(_SAMPLE, random)
        """Draws that represent all configurations."""
        self._discount = ProposalDiscount()
        self._paused: dict[str, float] = {}
        """Values of paused trials when they were last computed."""
        self._unvalued: set[str] = set()
        """Paused trials whose value was not computed yet."""
        self._new_trial = -math.inf
        self._valued_at = math.inf
        """Time left, in full trials, when all values were last computed; infinite: they never were."""
        self._fits = 0

    def observe(self, view: TrialView, old: TrialView | None) -> None:
        """Record a new trial, or what has changed of one since it was `old`."""
        name = view.trial_id
        is_proposed = old is None and not view.points and not view.is_start
        if is_proposed and len(self._surrogate.views) > SPREAD_FIRST + 1:
            self._discount.record_predicted(name, self._new_trial)
        if view.state.is_infeasible:
            self._discount.record_realised(name, -math.inf)
        self._paused.pop(name, None)
        self._unvalued.discard(name)
        if view.state is TrialState.PAUSED:
            self._unvalued.add(name)

    def refit(self, budget: BudgetState) -> None:
        """Refit the models and compute all values, if enough is new or enough time has passed."""
        self._surrogate.slots = budget.slots
        self._surrogate.refit()
        left = budget.seconds_left / budget.seconds_full
        is_due = self._fits != self._surrogate.fits or abs(self._valued_at - left) >= budget.evaluation_point
        if self._surrogate.best_loss is None or not is_due:
            return
        self._valued_at, self._fits = left, self._surrogate.fits
        self._value_new_trial(budget)
        self._value_paused(budget)

    def value_of(self, trial_id: str, budget: BudgetState) -> float:
        """Return the value of a running trial; infinite before the first evaluation of any trial."""
        self._refresh(budget)
        if self._surrogate.best_loss is None:
            return np.inf
        value = self._value(trial_id, budget, start=0.0)
        self._discount.record_realised(trial_id, value)
        return value

    def best_paused(self, budget: BudgetState) -> tuple[str, float] | None:
        """Return the paused trial of the highest value, and that value; None: no trial is paused."""
        self._refresh(budget)
        start = budget.seconds_start / budget.seconds_full
        is_known = self._surrogate.best_loss is not None
        for name in self._unvalued:
            self._paused[name] = self._value(name, budget, start) if is_known else -math.inf
        self._unvalued.clear()
        if not self._paused:
            return None
        best = min(self._paused, key=self._order)
        return best, self._paused[best]

    def paused(self, budget: BudgetState) -> list[str]:
        """Return all paused trials in descending order of value."""
        self.best_paused(budget)
        return self._ranked()

    def new_trial_value(self, budget: BudgetState) -> float:
        """Return the discounted value of the best untried configuration; minus infinity if none may start.

        It is infinite while the first configurations are still to be spread over the space.
        """
        self._refresh(budget)
        if not budget.may_start:
            return -math.inf
        if self._surrogate.knows_little:
            return float(np.inf)
        return self._new_trial + math.log(self._discount.factor)

    def _refresh(self, budget: BudgetState) -> None:
        """Refit before a decision, unless there are many slots and the decision must not wait."""
        self._surrogate.slots = budget.slots
        if not self._surrogate.has_many_slots:
            self.refit(budget)

    def _order(self, trial_id: str) -> tuple[float, str]:
        return -self._paused[trial_id], trial_id

    def _ranked(self) -> list[str]:
        return sorted(self._paused, key=self._order)

    def _value_new_trial(self, budget: BudgetState) -> None:
        known = self._surrogate
        draws = known.history.untried(self._sample)
        if not len(draws):
            self._new_trial = -math.inf
            return
        x = known.encoder.encode_many(draws)
        start = budget.seconds_start / budget.seconds_full
        pace, none = known.pace.predict(x), np.zeros(len(x))
        values = self._values(x, none, known.ends(draws), pace, start, budget)
        self._new_trial = float(values.max())

    def _value_paused(self, budget: BudgetState) -> None:
        views = self._surrogate.views
        names = [name for name in self._ranked()[:_MOST_VALUED] if views[name].points]
        if not names:
            return
        now, end, pace = (
            np.array([getattr(views[name], each) for name in names]) for each in ("fraction", "end", "pace")
        )
        values = self._values(names, now, end, pace, budget.seconds_start / budget.seconds_full, budget)
        self._paused.update(zip(names, values.tolist(), strict=True))

    def _value(self, trial_id: str, budget: BudgetState, start: float) -> float:
        view = self._surrogate.views[trial_id]
        who = [trial_id] if view.points else self._surrogate.encoder.encode(view.values)[None]
        now, end, pace = (np.array([each]) for each in (view.fraction, view.end, view.pace))
        return float(self._values(who, now, end, pace, start, budget)[0])

    def _values(
        self, who: Sequence[str] | Array, now: Array, end: Array, pace: Array, start: float, budget: BudgetState
    ) -> Array:
        """Return acquisition values [count]; `now` and `end` are fractions of a full trial, `start` is a time."""
        left = max(budget.seconds_left / budget.seconds_full - start, 0.0)
        todo = np.maximum(np.minimum(end - now, left / pace), _SMALLEST_STEP)
        return self._surrogate.log_improvement(who, (now + todo)[:, None]) - np.log(start + todo * pace)
