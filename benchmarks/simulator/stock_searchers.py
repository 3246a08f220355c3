"""Ray Tune's own searcher and scheduler, called as Tune calls them: a cross-check of the product's counterparts.

The objects are the real ones (ray.tune.search.optuna.OptunaSearch, ray.tune.schedulers.ASHAScheduler). Only the trials
and the clock are simulated. A trial reports its best loss so far. That is kinder to stock than Tune's default, the last
loss. Besides, these searches are never restarted and their trials have no patience.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import optuna
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.simulator.landscapes import Curve, Landscape
from benchmarks.simulator.simulator import Machine
from orchestrator.sampling.distributions import decode_all, distributions, encode_all
from search_spaces.schema import Dimension, Recipe

_METRIC = "best_eval_loss"


class Stock(StrEnum):
    """Searches by Ray Tune: OptunaSearch with ASHAScheduler, OptunaSearch alone, and random search."""

    ASHA = "ray/asha"
    TPE = "ray/none"
    RANDOM = "ray/random"


@dataclass
class _Trial:
    """The part of a Tune trial that its scheduler reads."""

    trial_id: str
    status: str = "RUNNING"


class StockSearch:
    """Searcher and scheduler of one search. Time is counted in evaluations of a trial, 1 to `evaluations`.

    `start`: configurations to try first.
    """

    def __init__(
        self,
        kind: Stock,
        space: Mapping[str, Dimension],
        seed: int,
        evaluations: int,
        grace: int = 1,
        factor: int = 3,
        start: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        sampler: dict[str, Any] = {"seed": seed}
        if kind is Stock.RANDOM:
            sampler = {"sampler": optuna.samplers.RandomSampler(seed)}
        self._searcher = OptunaSearch(
            distributions(space),
            metric=_METRIC,
            mode="min",
            points_to_evaluate=[encode_all(values, space) for values in start] or None,
            **sampler,
        )
        self._scheduler = (
            ASHAScheduler(metric=_METRIC, mode="min", max_t=evaluations, grace_period=grace, reduction_factor=factor)
            if kind is Stock.ASHA
            else FIFOScheduler()
        )
        self._evaluations = evaluations
        self._trials: dict[str, _Trial] = {}
        self._last: dict[str, dict[str, Any]] = {}

    def next(self) -> tuple[str, dict[str, Any]]:
        """Return a new trial: its id and hyperparameters, as in the recipe's space."""
        trial_id = f"{len(self._trials) + 1:04d}"
        values = self._searcher.suggest(trial_id)
        trial = self._trials[trial_id] = _Trial(trial_id)
        self._scheduler.on_trial_add(None, trial)
        return trial_id, decode_all(values, self._space)

    def on_eval(self, trial_id: str, evaluation: int, best_eval_loss: float) -> bool:
        """Record a trial's evaluation (1, 2, ...); return whether it goes on."""
        result = {"training_iteration": evaluation, _METRIC: best_eval_loss}
        self._last[trial_id] = result
        self._searcher.on_trial_result(trial_id, result)
        decision = self._scheduler.on_trial_result(None, self._trials[trial_id], result)
        return decision == TrialScheduler.CONTINUE and evaluation < self._evaluations

    def on_end(self, trial_id: str, failed: bool = False) -> None:
        """Record that a trial has ended: stopped, complete, or `failed` (diverged, out of memory: an error to Tune)."""
        if failed or trial_id not in self._last:
            self._searcher.on_trial_complete(trial_id, error=True)
            return
        self._scheduler.on_trial_complete(None, self._trials[trial_id], self._last[trial_id])
        self._searcher.on_trial_complete(trial_id, self._last[trial_id])


@dataclass
class _Running:
    """A trial that runs: its curve, and the lowest loss that was observed."""

    trial_id: str
    curve: Curve
    best: float = math.inf


@dataclass
class StockAccount:
    """Result of a search; times are in seconds."""

    exported: list[tuple[float, float]] = field(default_factory=list)
    """Pairs (time, loss without noise) of every adapter that an export would have chosen."""
    trials: int = 0
    full_length: int = 0


class StockReplay:
    """A stock search as Ray Tune runs it, on a simulated clock: a free slot gets the next trial, until time is over.

    Trials that run at the end lose what they trained since their last report.
    """

    def __init__(self, kind: Stock, recipe: Recipe, landscape: Landscape, machine: Machine) -> None:
        self._seed, self._evaluations = recipe.search.seed, recipe.evaluation.evaluations
        start = [recipe.start_values(name) for name in recipe.start]
        self._stock = StockSearch(kind, recipe.space, self._seed, self._evaluations, start=start)
        self._recipe, self._landscape, self._machine = recipe, landscape, machine
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Callable[[float], None]]] = []
        self._best = math.inf
        self.account = StockAccount()

    def play(self, slots: int, ends: float) -> StockAccount:
        """Play until `ends`, in seconds."""
        for _ in range(slots):
            self._at(0.0, self._begin)
        while self._queue and self._queue[0][0] <= ends:
            at, _, happens = heapq.heappop(self._queue)
            happens(at)
        return self.account

    def _at(self, at: float, happens: Callable[[float], None]) -> None:
        heapq.heappush(self._queue, (at, next(self._order), happens))

    def _begin(self, now: float) -> None:
        trial_id, values = self._stock.next()
        self.account.trials += 1
        curve = self._landscape.curve(trial_id, self._recipe.hyperparameters_with(values))
        self._next(_Running(trial_id, curve), 1, now + self._machine.start)

    def _next(self, running: _Running, evaluation: int, now: float) -> None:
        seconds = self._machine.full_trial * running.curve.slowness / self._evaluations
        self._at(now + seconds, lambda at: self._evaluate(running, evaluation, at))

    def _evaluate(self, running: _Running, evaluation: int, now: float) -> None:
        loss = running.curve.loss(evaluation / self._evaluations)
        noise = random.Random(f"{self._seed} {running.trial_id} {evaluation}").gauss(0, self._machine.noise)
        running.best = min(running.best, loss + noise)
        if running.best < self._best:
            self._best = running.best
            self.account.exported.append((now, loss))
        if self._stock.on_eval(running.trial_id, evaluation, running.best):
            self._next(running, evaluation + 1, now)
            return
        self.account.full_length += evaluation == self._evaluations
        self._stock.on_end(running.trial_id)
        self._begin(now)
