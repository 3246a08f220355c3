"""Surrogate of a search: all trials as observed, and the models that predict their losses and feasibility.

The acquisition ranker, the proposer and the completion guard share one instance. A small search refits the models after
every evaluation. A large one refits after as many new evaluations as a fortieth of its trials, or a quarter of its
slots if that is more. Between refits, a trial is predicted from the last fit and its own newest losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from scipy.special import erfcx, ndtr

from orchestrator.surrogate.curve_model import Forecast, LearningCurveModel
from orchestrator.surrogate.encoding import Array, SpaceEncoder
from orchestrator.surrogate.feasibility import FeasibilityModel
from orchestrator.surrogate.history import TrialHistory
from orchestrator.surrogate.pace import PaceModel
from orchestrator.surrogate.rate_schedule import rate_schedule
from orchestrator.surrogate.trial_view import TrialView

SPREAD_FIRST = 4
"""Number of first configurations, spread over the space: a model of few curves would choose extremes of the space."""
_REFITS, _ROUNDS = 40, 4
_FAR = -1e4
"""So many deviations above the best, the improvement's series has one term that counts."""
MANY_SLOTS = 16
"""From so many slots on, one evaluation changes little, and decisions use the models as they are."""


class Surrogate:
    """Trials of a search, and the models of learning curves, feasibility and pace.

    `only`: the configurations that may be tried, each once; None: all of the space. `end_of` returns the fraction of
    the longest full trial at which a configuration is complete; None: all are equally long. `scheduler` is the shape
    of the learning rate that all trials have.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        only: Sequence[Mapping[str, Any]] | None = None,
        end_of: Callable[[Mapping[str, Any]], float] | None = None,
        scheduler: str = "constant",
    ) -> None:
        self._end_of = end_of
        self.encoder = SpaceEncoder(space)
        self.history = TrialHistory(self.encoder, space, only)
        schedule = None if end_of is not None else rate_schedule(scheduler, space, self.encoder)
        self.curve_model = LearningCurveModel(self.encoder, schedule)
        self.feasibility = FeasibilityModel(space, self.encoder)
        self.pace = PaceModel()
        self.views: dict[str, TrialView] = {}
        self.best_loss: float | None = None
        """Lowest loss of any trial in nats; None before the first evaluation."""
        self.has_complete = False
        """Whether a trial has been trained at its full length."""
        self.fits = 0
        """Number of times that the models were refitted."""
        self.slots = 1
        self._news = 0
        self._known_incumbent: tuple[tuple[Any, ...], float] | None = None
        """What the incumbent was computed from, and its value."""

    @property
    def has_many_slots(self) -> bool:
        """Whether a decision must not wait for the models to be refitted."""
        return self.slots >= MANY_SLOTS

    @property
    def knows_little(self) -> bool:
        """Whether new configurations are still to be spread over the space."""
        return self.best_loss is None or len(self.views) <= SPREAD_FIRST

    def observe(self, view: TrialView) -> TrialView | None:
        """Record a new trial, or what has changed of one; return what was known of it before."""
        name, old = view.trial_id, self.views.get(view.trial_id)
        if view.state.is_infeasible and (old is None or not old.state.is_infeasible):
            self._news += 1
        self.views[name] = view
        self.history.observe(view)
        if view.points and (old is None or old.points != view.points or old.noise != view.noise):
            self.curve_model.observe(name, view.values, view.points, view.noise)
            loss = view.points[-1][1]
            self.best_loss = loss if self.best_loss is None else min(self.best_loss, loss)
            self._news += 1
        self.has_complete |= view.state.is_complete and bool(view.points)
        return old

    def refit(self) -> None:
        """Refit the models if enough evaluations came since the last time."""
        if self._news and self._news >= max(len(self.views) // _REFITS, self.slots // _ROUNDS):
            self.curve_model.fit()
            self.feasibility.fit(*self.history.outcomes())
            self.pace.fit(*self.history.measured())
            self._news, self.fits = 0, self.fits + 1

    def forecast(self, trial_id: str) -> Forecast | None:
        """Predict the loss of a trial at its end; None before its first evaluation."""
        view = self.views.get(trial_id)
        if view is None or not view.points:
            return None
        if not self.has_many_slots:
            self.refit()
        mean, spread = self.curve_model.predict_trial(trial_id, np.array([[view.end]]))
        return self.curve_model.to_loss(float(mean[0, 0]), float(np.sqrt(max(spread[0, 0, 0], 0.0))))

    def ends(self, draws: Array) -> Array:
        """Return the fraction of the longest full trial at which each draw is complete, [count]."""
        if self._end_of is None:
            return np.ones(len(draws))
        return np.array([self._end_of(self.encoder.decode(draw)) for draw in draws])

    def log_improvement(self, who: Sequence[str] | Array, fractions: Array) -> Array:
        """Return the logarithm of the expected improvement on the best trial, [count]; in the curve model's units.

        `who` are ids of trials that have been evaluated, or encoded configurations [count, dimensions]; `fractions`
        [count, 1] say at which fraction of a full trial each is predicted.
        """
        if len(who) == 1 and isinstance(who[0], str):
            mean, spread = self.curve_model.predict_trial(who[0], fractions)
        else:
            mean, spread = self.curve_model.predict(who, fractions)
        deviation = np.sqrt(np.maximum(spread[:, 0, 0], 0.0))
        return log_expected_improvement(self._incumbent(), mean[:, 0], deviation)

    def _incumbent(self) -> float:
        """Return the lowest loss that a trial has now by the model's mean, in standardised units.

        Predictions are free of noise. The lowest of many noisy losses would be too ambitious a target for them.
        """
        best = self.history.best
        key = (self.fits, *((view.trial_id, view.points) for view in best))
        if self._known_incumbent is None or self._known_incumbent[0] != key:
            means = (self.curve_model.predict_trial(each.trial_id, np.array([[each.fraction]]))[0] for each in best)
            self._known_incumbent = key, min(float(mean[0, 0]) for mean in means)
        return self._known_incumbent[1]


def log_expected_improvement(best: float, mean: Array, deviation: Array) -> Array:
    """Return the logarithm of the expected improvement on `best` of normal variables, [count].

    The expected improvement is that of Jones, Schonlau and Welch (1998). Its logarithm tells apart what would be zero
    in floating point (Ament et al., arXiv 2310.20708).
    """
    deviation = np.maximum(deviation, 1e-9)
    z = (best - mean) / deviation
    near, far, farthest = np.maximum(z, -1.0), np.clip(z, _FAR, -1.0), np.minimum(z, _FAR)
    density = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    log_near = np.log(near * ndtr(near) + np.exp(-0.5 * near**2) / np.sqrt(2 * np.pi))
    log_far = density + np.log1p(far * np.sqrt(np.pi / 2) * erfcx(-far / np.sqrt(2)))
    log_farthest = density - 2 * np.log(-farthest)
    return np.asarray(np.log(deviation) + np.where(z > -1, log_near, np.where(z > _FAR, log_far, log_farthest)))
