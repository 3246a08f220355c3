"""What a trial's loss will be later on, by what the search has shown so far.

Freeze-thaw Bayesian optimisation (Swersky, Snoek, Adams, arXiv 1406.3896) in its plainest form: one Gaussian
process over configuration and fraction trained (orchestrator.scheduling.gaussian_process) sees the losses of the
search. How far a loss at a fraction says what the loss at the end will be is thereby learned from the search's own
curves: where early and late losses go together, an early loss narrows the forecast; where fast learning rates lead
early and lose late, it hardly does, and the forecast follows those that went on.

The model sees a few hundred losses at most, whatever the search has: of every trial the newest and some before it, of
many trials the furthest and best and a spread over the others. Other trials are judged by it and their own losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from orchestrator.scheduling.encoding import SpaceEncoder
from orchestrator.scheduling.gaussian_process import (
    Array,
    Points,
    covariance,
    fit,
    noise_variance,
    prior,
    solve,
    squared_distances,
    within,
)

MOST_POINTS = 240
"""Losses that the model sees: its cost grows with their third power (240: about 10 ms, 0.2 s to find parameters)."""
_FURTHEST = 0.6
_FIT_STEPS = 15
_NEW_FOR_A_FIT = 0.1
_THINNING = 0.62
_SMALLEST_SCALE = 0.02
_SMALLEST_LOSS = 1e-8
_SMALLEST_FRACTION = 1e-4
_OFFSET, _POWER = 0.1, 0.2
_SMALLEST_ROOT = 1e-3
_HIGHEST = 0.9


@dataclass(frozen=True)
class Forecast:
    """A predicted final loss, in nats, with its standard deviation."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class _Seen:
    x: Array
    s: Array
    log_loss: Array
    noise: float
    kept: tuple[int, ...]


class LearningCurveModel:
    """The model: told of trials, asked what they will come to.

    Inside, a loss is how far it has come down from the base model's: y = -(ln(base / loss) + 0.1)^0.2, standardised.
    That is nearly a logarithm: slow and fast trials then differ by about the same at every fraction, and the first
    segment of a slow one says that it will not come far, which no difference of losses or of their logarithms says. A
    whole logarithm would leave too little between the best.
    """

    def __init__(self, coordinates: SpaceEncoder) -> None:
        self._coordinates = coordinates
        self._seen: dict[str, _Seen] = {}
        self._theta = prior(coordinates.count)[0]
        self._fitted_points = 0
        self._told_since_fit = 0
        self._index: dict[str, int] = {}
        self._base: tuple[Points, Array, Array] | None = None
        self._center, self._scale = 0.0, 1.0
        self._top = 0.0
        self.base_loss: float | None = None

    def observe(
        self, trial_id: str, values: Mapping[str, Any], points: Sequence[tuple[float, float]], noise: float
    ) -> None:
        """Takes in all losses (nats) of a trial at fractions of a full trial, and the newest one's standard error."""
        old = self._seen.get(trial_id)
        s = np.log(np.maximum([fraction for fraction, _ in points], _SMALLEST_FRACTION))
        loss = np.maximum([loss for _, loss in points], _SMALLEST_LOSS)
        x = old.x if old else self._coordinates.encode(values)
        self._seen[trial_id] = _Seen(x, s, np.log(loss), noise / loss[-1], tuple(_kept(s)))
        self._told_since_fit += len(points) - (len(old.s) if old else 0)

    def fit(self) -> None:
        """Takes all that was told into account; finds the parameters anew where enough is new."""
        chosen = self._chosen()
        self._index = {name: number for number, name in enumerate(chosen)}
        if not chosen:
            return
        seen = [self._seen[name] for name in chosen]
        counts = [len(each.kept) for each in seen]
        s = np.concatenate([each.s[list(each.kept)] for each in seen])
        points = Points(
            np.repeat(np.stack([each.x for each in seen]), counts, 0), s, np.repeat(np.arange(len(seen)), counts)
        )
        self._top = self._find_top()
        y = np.concatenate([self._seen_as(each.log_loss[list(each.kept)]) for each in seen])
        self._center, self._scale = float(np.mean(y)), max(float(np.std(y)), _SMALLEST_SCALE)
        z = (y - self._center) / self._scale
        extra = np.repeat([self._noise_of(each) for each in seen], counts)
        if self._told_since_fit >= max(3, _NEW_FOR_A_FIT * self._fitted_points) and len(y) >= 4:
            self._theta = fit(points, z, extra, self._theta, _FIT_STEPS)
            self._fitted_points, self._told_since_fit = self._fitted_points + self._told_since_fit, 0
        self._base = (points, *solve(self._theta, points, z, extra))

    def predict(self, who: Sequence[str] | Array, fractions: Array) -> tuple[Array, Array]:
        """Means (arms, stops) and covariances (arms, stops, stops) of losses to come, standardised, without noise.

        `who` are trials' ids, or the coordinates (arms, dimensions) of configurations not tried yet; `fractions`
        (arms, stops). Taken into account is what was told by the last `refresh`.
        """
        x = who if isinstance(who, np.ndarray) else np.stack([self._seen[each].x for each in who])
        number = [-1] * len(x) if isinstance(who, np.ndarray) else [self._index.get(each, -1) for each in who]
        s = np.log(np.maximum(fractions, _SMALLEST_FRACTION))
        spread = within(self._theta, s)
        if self._base is None:
            return np.zeros_like(s), spread
        points, lower, white = self._base
        arms, stops = s.shape
        at = Points(np.repeat(x, stops, 0), s.reshape(-1), np.repeat(np.array(number), stops))
        cross = covariance(self._theta, points, at)
        solved = scipy.linalg.solve_triangular(lower, cross, lower=True, check_finite=False)
        mean = (solved.T @ white).reshape(arms, stops)
        solved = solved.reshape(-1, arms, stops).transpose(1, 0, 2)
        return mean, spread - solved.transpose(0, 2, 1) @ solved

    def predict_trial(self, trial_id: str, fractions: Array) -> tuple[Array, Array]:
        """As `ahead` for one trial (1, stops), with those of its losses too that were told since the last `refresh`."""
        seen = self._seen[trial_id]
        new = self._new(trial_id, seen)
        if not new:
            return self.predict([trial_id], fractions)
        mean, spread = self.predict([trial_id], np.concatenate([np.exp(seen.s[new])[None], fractions], 1))
        n = len(new)
        known = spread[0, :n, :n] + np.eye(n) * (self.noise + self._noise_of(seen))
        gain = np.linalg.solve(known, spread[0, :n, n:])
        surprise = (self._seen_as(seen.log_loss[new]) - self._center) / self._scale - mean[0, :n]
        return mean[:, n:] + surprise @ gain, spread[:, n:, n:] - (spread[0, n:, :n] @ gain)[None]

    def _new(self, trial_id: str, seen: _Seen) -> list[int]:
        if trial_id not in self._index or self._base is None:
            return list(seen.kept)
        points = self._base[0]
        last = points.s[points.trial == self._index[trial_id]].max()
        return [index for index in range(len(seen.s)) if seen.s[index] > last + 1e-9][-3:]

    @property
    def noise(self) -> float:
        """Variance of one evaluation, standardised."""
        return noise_variance(self._theta)

    def similarity(self, x: Array, others: Array) -> Array:
        """How alike configurations are for the model, (len(x), len(others)), 0 to 1: a little apart is apart enough."""
        lengths = np.exp(self._theta[: x.shape[1]])
        return np.asarray(np.exp(-2 * squared_distances(x / lengths, others / lengths)))

    def to_loss(self, mean: float, deviation: float) -> Forecast:
        """A standardised prediction as a loss."""
        seen_as = max(-(self._center + self._scale * mean), _SMALLEST_ROOT)
        come_down = float(seen_as ** (1 / _POWER))
        loss = float(np.exp(self._top - (come_down - _OFFSET)))
        return Forecast(loss, loss * come_down / (_POWER * seen_as) * self._scale * deviation)

    def to_target(self, loss: float) -> float:
        """A loss in nats as the model sees it."""
        return float((self._seen_as(np.log([max(loss, _SMALLEST_LOSS)]))[0] - self._center) / self._scale)

    def _seen_as(self, log_loss: Array) -> Array:
        return np.asarray(-((np.maximum(self._top - log_loss, 0.0) + _OFFSET) ** _POWER))

    def _noise_of(self, seen: _Seen) -> float:
        come_down = max(self._top - float(seen.log_loss[-1]), 0.0) + _OFFSET
        return float((seen.noise * _POWER * come_down ** (_POWER - 1) / self._scale) ** 2)

    def _find_top(self) -> float:
        """Logarithm of the loss that training starts from: the base model's, or nearly the highest first one."""
        if self.base_loss is not None:
            return float(np.log(max(self.base_loss, _SMALLEST_LOSS)))
        return float(np.quantile([seen.log_loss[0] for seen in self._seen.values()], _HIGHEST))

    def _chosen(self) -> list[str]:
        """Which trials the model sees: all, or the furthest and best, and of the others every so manyth."""
        names = list(self._seen)
        if sum(len(seen.kept) for seen in self._seen.values()) <= MOST_POINTS:
            return names
        names.sort(key=lambda name: (-self._seen[name].s[-1], self._seen[name].log_loss[-1]))
        counts = np.cumsum([len(self._seen[name].kept) for name in names])
        first = int(np.searchsorted(counts, _FURTHEST * MOST_POINTS))
        others = names[first:]
        mean = (counts[-1] - counts[first - 1]) / len(others)
        wanted = int((1 - _FURTHEST) * MOST_POINTS / mean)
        return names[:first] + others[:: max(1, -(-len(others) // wanted))]


def _kept(s: Array) -> list[int]:
    """The newest loss and, going back, others at most so large a part of the training before it."""
    kept: list[int] = []
    for index in range(len(s) - 1, -1, -1):
        if not kept or s[index] <= s[kept[-1]] + np.log(_THINNING):
            kept.append(index)
    return kept[::-1]
