"""All that could have the machine next, and what each of them bids.

The forecasts are refreshed after every evaluation of a small search, and after every fortieth part of the trials of a
large one (or a quarter of its slots); in between a trial is judged by the forecasts of then and its own newest losses.
With many slots nobody waits for that: forecasts are only refreshed when there is time for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.scheduling.bids import Bids
from orchestrator.scheduling.curve_model import Forecast, LearningCurveModel
from orchestrator.scheduling.encoding import Array, SpaceEncoder
from orchestrator.scheduling.expected_improvement import expected_improvement
from orchestrator.scheduling.feasibility import FeasibilityModel
from orchestrator.scheduling.history import TrialHistory
from orchestrator.scheduling.proposal_discount import ProposalDiscount
from orchestrator.scheduling.proposer import CandidatePool
from orchestrator.scheduling.types import BudgetState, State, TrialView
from search_spaces.schema import Dimension

_POOL = 100
"""Configurations drawn at random that stand for all that could start."""
_CANDIDATES, _MANY_CANDIDATES = 300, 1500
_SPREAD_FIRST = 4
"""So many first configurations are spread over the space: a model of few curves would look into its corners."""
_SPREAD_AMONG = 10
_SMALLEST_STEP = 1e-3
_LATE = 0.5
_SLACK = 1.5
"""Segments between two evaluations by which the last trial that could be completed is begun early."""
_REFRESHES, _ROUNDS = 40, 4
_MANY_SLOTS = 16
"""From so many on, what one trial has just told decides little, and a decision uses what is known already."""
_MOST_PRICED = 200
_MOST_FORECAST = 50
_CAUTION = 10
"""A failure takes little time but tells nothing of losses: what fails one time in fifteen counts half."""


class AcquisitionRanker:
    """The contenders of a search."""

    def __init__(
        self, space: Mapping[str, Dimension], seed: int, only: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        self._coordinates = SpaceEncoder(space)
        self._history = TrialHistory(self._coordinates, space, only)
        self._curve_model = LearningCurveModel(self._coordinates)
        self._random = np.random.default_rng(seed)
        self._pool = self._coordinates.sample(_POOL, self._random)
        self._known: dict[str, TrialView] = {}
        self._failures = FeasibilityModel()
        self._best: float | None = None
        self._news = 0
        self._slots = 1
        self._bids = Bids()
        self._unpriced: set[str] = set()
        self._fresh_price = 0.0
        self._priced_at: float | None = None
        self._discount = ProposalDiscount()
        self._candidates: CandidatePool | None = None
        self._starts: dict[str, TrialView] = {}
        """Starting points that aren't over."""
        self.has_complete = False

    def update(self, view: TrialView) -> None:
        """Takes in a new trial, or what has changed of one."""
        name, old = view.trial_id, self._known.get(view.trial_id)
        if old is None and not view.points and not view.is_start and len(self._known) > _SPREAD_FIRST:
            self._discount.record_predicted(name, self._fresh_price)
        if view.state is State.INFEASIBLE and (old is None or old.state is not State.INFEASIBLE):
            self._discount.record_realised(name, 0.0)
            self._news += 1
        self._known[name] = view
        self._history.observe(view)
        self._starts.pop(name, None)
        if view.is_start and view.state in {State.RUNNING, State.PAUSED}:
            self._starts[name] = view
        if view.points and (old is None or old.points != view.points or old.noise != view.noise):
            self._curve_model.observe(name, view.values, view.points, view.noise)
            loss = view.points[-1][1]
            self._best = loss if self._best is None else min(self._best, loss)
            self.has_complete |= view.points[-1][0] >= view.end - 1e-9
            self._news += 1
        self._bids.withdraw(name)
        self._unpriced.discard(name)
        if view.state is State.PAUSED:
            self._unpriced.add(name)

    def set_base_loss(self, base_loss: float) -> None:
        """The base model's loss."""
        self._curve_model.base_loss = base_loss

    def __getitem__(self, trial_id: str) -> TrialView:
        return self._known[trial_id]

    def due_starts(self, budget: BudgetState) -> list[TrialView]:
        """Starting points that have to go on now so as to be complete by the end, if any."""
        if not self._starts:
            return []
        to_do = [self._to_do(each) for each in self._starts.values()]
        needed = max(*to_do, sum(to_do) / budget.slots) + 1 + budget.evaluation_point
        is_late = budget.seconds_left <= max(_LATE * budget.seconds, needed * budget.seconds_full)
        return list(self._starts.values()) if is_late else []

    def last_chance(self, budget: BudgetState) -> TrialView | None:
        """The one to be completed, if a segment more of anything else would leave no time for that.

        It's the trial with the best loss expected at its end among those that can still be completed.
        """
        left = (budget.seconds_left - budget.seconds_start) / budget.seconds_full
        if left > 1 + budget.evaluation_point:
            return None
        can = [each for each in self._known.values() if each.state in {State.RUNNING, State.PAUSED}]
        can = [each for each in can if each.points and self._to_do(each) <= left]
        can = heapq.nsmallest(_MOST_FORECAST, can, key=lambda each: each.points[-1][1])
        expected = [(forecast.mean, each) for each in can if (forecast := self.forecast(each.trial_id)) is not None]
        if not expected:
            return None
        best = min(expected, key=lambda pair: pair[0])[1]
        return best if self._to_do(best) + _SLACK * budget.evaluation_point >= left else None

    @staticmethod
    def _to_do(view: TrialView) -> float:
        return view.end - (view.points[-1][0] if view.points else 0.0)

    def paused(self, budget: BudgetState) -> list[str]:
        """The paused trials, those that bid most first."""
        self.best_paused(budget)
        return self._bids.ranked()

    def value_of(self, trial_id: str, budget: BudgetState) -> float:
        """What a running trial bids."""
        self._refresh(budget)
        if self._best is None:
            return np.inf
        price = self._price(trial_id, budget, start=0.0)
        self._discount.record_realised(trial_id, price)
        return price

    def best_paused(self, budget: BudgetState) -> tuple[str, float] | None:
        """The paused trial that bids most, and its bid."""
        self._refresh(budget)
        start = budget.seconds_start / budget.seconds_full
        for name in self._unpriced:
            self._bids.put(name, self._price(name, budget, start) if self._best is not None else 0.0)
        self._unpriced.clear()
        return self._bids.best()

    def new_trial_value(self, budget: BudgetState) -> float:
        """What the best configuration not tried yet bids, as far as such bids were kept; 0.0 if none may start."""
        self._refresh(budget)
        if not budget.may_start or not self.has_untried:
            return 0.0
        if self._best is None or len(self._known) <= _SPREAD_FIRST:
            return float(np.inf)
        return self._fresh_price * self._discount.factor

    @property
    def has_untried(self) -> bool:
        """Whether there is a configuration that hasn't been tried."""
        return self._history.has_untried

    def forecast(self, trial_id: str) -> Forecast | None:
        """The loss at its end, as far as it can be told; None before its first evaluation."""
        view = self._known.get(trial_id)
        if view is None or not view.points:
            return None
        self._catch_up_now()
        mean, spread = self._curve_model.predict_trial(trial_id, np.array([[view.end]]))
        return self._curve_model.to_loss(float(mean[0, 0]), float(np.sqrt(max(spread[0, 0, 0], 0.0))))

    def propose(self, seed: int) -> dict[str, Any]:
        """The configuration not tried yet that is expected to improve most on the best loss."""
        random = np.random.default_rng(seed)
        if self._best is None or len(self._known) <= _SPREAD_FIRST:
            return self._coordinates.decode(self._spread(random))
        if self._slots < _MANY_SLOTS:
            self._catch_up()
            return self._coordinates.decode(self._look_around(random, _CANDIDATES).pop_best())
        if self._candidates is None or self._candidates.is_exhausted:
            self._candidates = self._look_around(random, _MANY_CANDIDATES)
        return self._coordinates.decode(self._candidates.pop_best())

    def _spread(self, random: np.random.Generator) -> Array:
        """One of the first configurations."""
        draws = self._history.untried(self._coordinates.sample(_CANDIDATES, random))
        if not self._known:
            return np.asarray(draws[0])
        few = random.permutation(draws)[:_SPREAD_AMONG]
        return np.asarray(few[int(np.argmax(self._history.distances(few)))])

    def _look_around(self, random: np.random.Generator, count: int) -> CandidatePool:
        """Configurations of all the space and some like the best, with the expected improvement of each."""
        assert self._best is not None
        near = [self._coordinates.perturb(each.values, count // 10, random) for each in self._history.best]
        draws = self._history.untried(np.concatenate([self._coordinates.sample(count, random), *near]))
        x = self._coordinates.encode_many(draws)
        mean, spread = self._curve_model.predict(x, np.ones((len(x), 1)))
        deviation = np.sqrt(np.maximum(spread[:, 0, 0], 0.0))
        gain = expected_improvement(self._curve_model.to_target(self._best), mean[:, 0], deviation)
        worth = gain * self._failures.predict(x) ** _CAUTION
        candidates = CandidatePool(draws, x, worth, self._curve_model.similarity)
        candidates.penalise_similar(self._history.pending())
        return candidates

    def refit(self, budget: BudgetState) -> None:
        """Forecasts and bids, where enough is new, or so much time has passed that others can still be completed."""
        self._slots = budget.slots
        self._catch_up()
        self._price_all(budget)
        if self._candidates is not None and self._candidates.popped > _MANY_CANDIDATES // 10:
            self._candidates = None
        if self._candidates is None and budget.slots >= _MANY_SLOTS and self._best is not None:
            self._candidates = self._look_around(self._random, _MANY_CANDIDATES)

    def _refresh(self, budget: BudgetState) -> None:
        """The same before a decision, if that may take its time."""
        self._slots = budget.slots
        if budget.slots < _MANY_SLOTS:
            self.refit(budget)

    def _catch_up_now(self) -> None:
        if self._slots < _MANY_SLOTS:
            self._catch_up()

    def _catch_up(self) -> None:
        if self._news and self._news >= max(len(self._known) // _REFRESHES, self._slots // _ROUNDS):
            self._curve_model.fit()
            self._failures.fit(*self._history.outcomes())
            self._news, self._priced_at, self._candidates = 0, None, None

    def _price_all(self, budget: BudgetState) -> None:
        left = budget.seconds_left / budget.seconds_full
        if self._best is None or (
            self._priced_at is not None and abs(self._priced_at - left) < budget.evaluation_point
        ):
            return
        self._priced_at = left
        start = budget.seconds_start / budget.seconds_full
        pool = self._coordinates.encode_many(self._history.untried(self._pool))
        none, full = np.zeros(len(pool)), np.ones(len(pool))
        self._fresh_price = float(self._priced(pool, none, full, start, budget).max()) if len(pool) else 0.0
        names = [name for name in self._bids.ranked()[:_MOST_PRICED] if self._known[name].points]
        if names:
            now = np.array([self._known[name].points[-1][0] for name in names])
            end = np.array([self._known[name].end for name in names])
            for name, price in zip(names, self._priced(names, now, end, start, budget).tolist(), strict=True):
                self._bids.put(name, price)

    def _price(self, trial_id: str, budget: BudgetState, start: float) -> float:
        view = self._known[trial_id]
        now = np.array([view.points[-1][0] if view.points else 0.0])
        who = [trial_id] if view.points else self._coordinates.encode(view.values)[None]
        return float(self._priced(who, now, np.array([view.end]), start, budget)[0])

    def _priced(self, who: Sequence[str] | Array, now: Array, end: Array, start: float, budget: BudgetState) -> Array:
        left = max(budget.seconds_left / budget.seconds_full - start, 0.0)
        todo = np.maximum(np.minimum(end - now, left), _SMALLEST_STEP)
        fractions = (now + todo)[:, None]
        if len(who) == 1 and isinstance(who[0], str):
            mean, spread = self._curve_model.predict_trial(who[0], fractions)
        else:
            mean, spread = self._curve_model.predict(who, fractions)
        assert self._best is not None
        deviation = np.sqrt(np.maximum(spread[:, 0, 0], 0.0))
        return expected_improvement(self._curve_model.to_target(self._best), mean[:, 0], deviation) / (start + todo)
