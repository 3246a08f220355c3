"""Learning-curve model: predicts a trial's later losses from all losses of the search so far.

The model follows freeze-thaw Bayesian optimisation (Swersky, Snoek, Adams, arXiv 1406.3896) in its plainest form. One
Gaussian process over configuration and fraction trained (`orchestrator.surrogate.gaussian_process`) is fitted to the
search's own losses. So it learns how much an early loss says about the final one. Where early and late losses
correlate, an early loss narrows the prediction. Where fast learning rates lead early and lose late, it hardly does.

The fit uses at most `MOST_POINTS` losses: of every trial the newest and some before it. With many trials it uses the
furthest and best trials, and a sample of the others. Trials left out are predicted from the fit and their own losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from orchestrator.surrogate.encoding import SpaceEncoder
from orchestrator.surrogate.gaussian_process import (
    Array,
    Points,
    covariance,
    fit,
    noise_variance,
    prior,
    solve,
    squared_distances,
    use_one_blas_thread,
    within,
)
from orchestrator.surrogate.rate_schedule import RateSchedule

MOST_POINTS = 240
"""Number of losses in a fit, at most. The cost grows with its third power.

With 240, about 10 ms, and 0.2 s if the parameters are found anew.
"""
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
    """Predicts losses of trials at given fractions of a full trial.

    Inside, a loss is replaced by its distance below the base model's: y = -(ln(base / loss) + 0.1)^0.2, standardised.
    That is nearly a logarithm, so slow and fast trials differ by about the same at every fraction. The first segment of
    a slow trial then shows that its final loss will be high. Differences of losses or of their logarithms do not show
    it. A full logarithm would leave too little difference between the best trials.

    With a `schedule`, the learning rate that a trial has at a fraction is a coordinate of its own, and a part of the
    loss is gone when the rate has come down. So a trial with a high rate isn't taken for a bad one before that.
    """

    def __init__(self, coordinates: SpaceEncoder, schedule: RateSchedule | None = None) -> None:
        use_one_blas_thread()
        self._coordinates = coordinates
        self._schedule = schedule
        self._seen: dict[str, _Seen] = {}
        self._theta = prior(coordinates.count + (schedule is not None))[0]
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
        """Record all losses (nats) of a trial at fractions of a full trial, and the standard error of the newest."""
        old = self._seen.get(trial_id)
        s = np.log(np.maximum([fraction for fraction, _ in points], _SMALLEST_FRACTION))
        loss = np.maximum([loss for _, loss in points], _SMALLEST_LOSS)
        x = old.x if old else self._coordinates.encode(values)
        self._seen[trial_id] = _Seen(x, s, np.log(loss), noise / loss[-1], tuple(_kept(s)))
        self._told_since_fit += len(points) - (len(old.s) if old else 0)

    def fit(self) -> None:
        """Condition the process on all observations; find its parameters anew if enough of them are new."""
        chosen = self._chosen()
        self._index = {name: number for number, name in enumerate(chosen)}
        if not chosen:
            return
        seen = [self._seen[name] for name in chosen]
        counts = [len(each.kept) for each in seen]
        s = np.concatenate([each.s[list(each.kept)] for each in seen])
        x = np.repeat(np.stack([each.x for each in seen]), counts, 0)
        points = self._points(x, s, np.repeat(np.arange(len(seen)), counts))
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
        """Predict standardised losses, without noise: their means, and a covariance matrix for each trial.

        `who` are trial ids, or encoded configurations [trials, dimensions] that were not tried yet; `fractions` are
        [trials, fractions], and so are the means. Only observations up to the last `fit` are used.
        """
        x = who if isinstance(who, np.ndarray) else np.stack([self._seen[each].x for each in who])
        number = [-1] * len(x) if isinstance(who, np.ndarray) else [self._index.get(each, -1) for each in who]
        s = np.log(np.maximum(fractions, _SMALLEST_FRACTION))
        arms, stops = s.shape
        at = self._points(np.repeat(x, stops, 0), s.reshape(-1), np.repeat(np.array(number), stops))
        falling = None if self._schedule is None else at.x[:, -1].reshape(arms, stops)
        spread = within(self._theta, s, at.rate.reshape(arms, stops), falling)
        if self._base is None:
            return np.zeros_like(s), spread
        points, lower, white = self._base
        cross = covariance(self._theta, points, at)
        solved = scipy.linalg.solve_triangular(lower, cross, lower=True, check_finite=False)
        mean = (solved.T @ white).reshape(arms, stops)
        solved = solved.reshape(-1, arms, stops).transpose(1, 0, 2)
        return mean, spread - solved.transpose(0, 2, 1) @ solved

    def predict_trial(self, trial_id: str, fractions: Array) -> tuple[Array, Array]:
        """Predict one trial as `predict` does, `fractions` being [1, fractions].

        Its own losses that were observed since the last `fit` are used too.
        """
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

    def _points(self, x: Array, s: Array, trial: NDArray[np.int64]) -> Points:
        """Return the process's inputs at log fractions `s` [points], with a coordinate for the rate if it falls."""
        if self._schedule is None:
            return Points(x, s, trial, np.zeros(len(s)), np.zeros(len(s)))
        fractions = np.exp(s)
        falling = self._schedule.coordinate(x, fractions)[:, None]
        return Points(
            np.concatenate([x, falling], axis=1), s, trial, self._schedule.relative(fractions), self._schedule.peak(x)
        )

    def _new(self, trial_id: str, seen: _Seen) -> list[int]:
        if trial_id not in self._index or self._base is None:
            return list(seen.kept)
        points = self._base[0]
        last = points.s[points.trial == self._index[trial_id]].max()
        return [index for index in range(len(seen.s)) if seen.s[index] > last + 1e-9][-3:]

    @property
    def noise(self) -> float:
        """Noise variance of one evaluation, in standardised units."""
        return noise_variance(self._theta)

    def similarity(self, x: Array, others: Array) -> Array:
        """Return the similarity of encoded configurations, [len(x), len(others)], 0 to 1.

        It falls faster with distance than the covariance does: a small distance is enough to count as different.
        """
        lengths = np.exp(self._theta[: x.shape[1]])
        return np.asarray(np.exp(-2 * squared_distances(x / lengths, others / lengths)))

    def to_loss(self, mean: float, deviation: float) -> Forecast:
        """Convert a standardised prediction to a loss in nats."""
        seen_as = max(-(self._center + self._scale * mean), _SMALLEST_ROOT)
        come_down = float(seen_as ** (1 / _POWER))
        loss = float(np.exp(self._top - (come_down - _OFFSET)))
        return Forecast(loss, loss * come_down / (_POWER * seen_as) * self._scale * deviation)

    def _seen_as(self, log_loss: Array) -> Array:
        return np.asarray(-((np.maximum(self._top - log_loss, 0.0) + _OFFSET) ** _POWER))

    def _noise_of(self, seen: _Seen) -> float:
        come_down = max(self._top - float(seen.log_loss[-1]), 0.0) + _OFFSET
        return float((seen.noise * _POWER * come_down ** (_POWER - 1) / self._scale) ** 2)

    def _find_top(self) -> float:
        """Return the log of the loss at which training starts: the base model's, or a high quantile of first losses."""
        if self.base_loss is not None:
            return float(np.log(max(self.base_loss, _SMALLEST_LOSS)))
        return float(np.quantile([seen.log_loss[0] for seen in self._seen.values()], _HIGHEST))

    def _chosen(self) -> list[str]:
        """Return the ids of the trials to fit: all, or the furthest and best, and every n-th of the others."""
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
    """Return the indices to keep: the newest; going back, each at most `_THINNING` times the fraction of the last."""
    kept: list[int] = []
    for index in range(len(s) - 1, -1, -1):
        if not kept or s[index] <= s[kept[-1]] + np.log(_THINNING):
            kept.append(index)
    return kept[::-1]
