"""Ray Tune's own searcher and scheduler, called as Tune calls them: the search of a user's script today.

The objects are the real ones (ray.tune.search.optuna.OptunaSearch, ray.tune.schedulers.ASHAScheduler). Only the trials
and the clock are simulated. A trial reports its best loss so far. That is kinder to stock than Tune's default, the last
loss. Two more stand beside it: TPE without pruning, and random search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import optuna
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from orchestrator.sampling.distributions import decode, distribution, encode
from search_spaces.schema import Dimension

Snap = Callable[[dict[str, Any]], Mapping[str, Any]]
_METRIC = "best_eval_loss"


class Stock(StrEnum):
    """The three searches that ours is compared with."""

    ASHA = "asha"
    TPE = "tpe"
    RANDOM = "random"


@dataclass
class _Trial:
    """The part of a Tune trial that its scheduler reads."""

    trial_id: str
    status: str = "RUNNING"


class _Replayed(optuna.samplers.TPESampler):
    """OptunaSearch's default sampler where only some configurations can be had: it is told the one it really gets."""

    def __init__(self, seed: int, space: Mapping[str, Dimension], snap: Snap) -> None:
        super().__init__(seed=seed)
        self._dimensions, self._snap = space, snap

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {name: distribution(name, dimension) for name, dimension in self._dimensions.items()}

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        drawn = {name: self.sample_independent(study, trial, name, each) for name, each in search_space.items()}
        got = self._snap({name: decode(value, self._dimensions[name]) for name, value in drawn.items()})
        return {name: encode(got[name], dimension) for name, dimension in self._dimensions.items()}


class StockSearch:
    """Searcher and scheduler of one search. Time is counted in evaluations of a trial, 1 to `evaluations`.

    `start`: configurations to try first. `snap`: maps a proposal to the configuration that it gets from a table. The
    sampler is then told that configuration, not its proposal. None: searches aren't replayed on a table.
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
        snap: Snap | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        sampler: dict[str, Any] = {"seed": seed}
        if kind is Stock.RANDOM:
            sampler = {"sampler": optuna.samplers.RandomSampler(seed)}
        elif snap is not None:
            sampler = {"sampler": _Replayed(seed, space, snap)}
        self._searcher = OptunaSearch(
            {name: distribution(name, dimension) for name, dimension in space.items()},
            metric=_METRIC,
            mode="min",
            points_to_evaluate=[{name: encode(values[name], space[name]) for name in space} for values in start]
            or None,
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
        return trial_id, {name: decode(value, self._space[name]) for name, value in values.items()}

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
