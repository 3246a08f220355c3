"""Gaussian process over configuration and fraction trained: its covariance, and the fit of its parameters.

The value (a transformed loss, standardised) of a configuration x at a fraction t is a sum of three parts: the curve
that all trials share, the configuration's effect, and this trial's own effect (its seed, and whatever the space does
not describe). The covariance of two values is

    k = shared(t, t') + a(t) a(t') [matern52(x, x') (l^2 + g^2 matern32(t, t')) + o^2 same_trial exp(-|t - t'|)]
        + f^2 r(t) r(t') matern52(p, p') + noise

- l (`lasting`) and g (`config`): amplitudes of the configuration's effect, constant and changing along the curve;
- o (`own`): amplitude of the trial's own effect; same_trial is 1 within a trial, else 0;
- a(t) = t^gamma: with training, losses of different configurations may converge or diverge;
- f (`lift`): amplitude of what the gradient's noise adds to the loss while the learning rate is high, and takes away
  as it falls (Tissue et al., arXiv 2408.11029). r(t) is the rate relative to its peak, p the peak's coordinate. Without
  a schedule that falls, r is 0.

Differences of fractions are on a logarithmic scale, divided by a length scale (`config_length`, `own_length`). Every
dimension of the space has a length scale of its own. Parameters are the most probable ones under wide priors (MAP;
Rasmussen and Williams 2006, chapter 5). While no trial has ended, the priors decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Array = NDArray[np.float64]

_SHARED, _SHARED_LENGTH = 1.5, 1.5
_JITTER = 1e-6
_LIFT_LENGTH = 0.3
"""Length scale of the lift, in units of the range of peak rates."""
_COMMON = {
    # name: (mean of the logarithm (of gamma itself), its standard deviation)
    "lasting": (0.0, 0.5),
    "config": (np.log(0.4), 0.7),
    "config_length": (np.log(2.0), 0.5),
    "own": (np.log(0.2), 0.7),
    "own_length": (np.log(2.0), 0.6),
    "lift": (np.log(0.7), 0.3),
    "noise": (np.log(0.03), 0.5),
    "gamma": (0.0, 0.3),
}
_LENGTH = (np.log(0.8), 0.7)


@dataclass(frozen=True)
class Points:
    """Inputs of the process: coordinates [count, dimensions], log fractions [count] and trial numbers [count].

    `rate` [count] is the learning rate relative to its peak, `peak` [count] the peak's coordinate; both are 0 without a
    schedule that falls.
    """

    x: Array
    s: Array
    trial: NDArray[np.int64]
    rate: Array
    peak: Array


@cache
def use_one_blas_thread() -> None:
    """Let NumPy and SciPy use one thread from now on, in all of this process.

    The matrices here are too small for more: on a busy machine, idle threads make it 100 times slower.
    """
    threadpool_limits(1, user_api="blas")


def prior(dimensions: int) -> tuple[Array, Array]:
    """Return prior means and standard deviations: one length scale per dimension, then the parameters in `_COMMON`."""
    means = [_LENGTH[0]] * dimensions + [mean for mean, _ in _COMMON.values()]
    deviations = [_LENGTH[1]] * dimensions + [deviation for _, deviation in _COMMON.values()]
    return np.array(means), np.array(deviations)


def covariance(theta: Array, a: Points, b: Points) -> Array:
    """Return the covariance between two sets of points without noise, [len(a), len(b)]."""
    lengths, lasting, config, config_length, own, own_length = _unpack(theta)
    gap = np.abs(a.s[:, None] - b.s[None, :])
    r = _distance(a.x / lengths, b.x / lengths)
    between = (1 + r + r**2 / 3) * np.exp(-r) * (lasting**2 + config**2 * _matern32(gap, config_length))
    same = a.trial[:, None] == b.trial[None, :]
    if same.any():
        between[same] += own**2 * np.exp(-gap[same] / own_length)
    between *= np.exp(theta[-1] * a.s)[:, None] * np.exp(theta[-1] * b.s)[None, :]
    return np.asarray(between + _SHARED**2 * _matern32(gap, _SHARED_LENGTH) + _lift(theta, a, b))


def within(theta: Array, s: Array, rate: Array, falling: Array | None = None) -> Array:
    """Return the covariance within each trial at log fractions `s` [trials, fractions], one matrix per trial.

    `rate` is the relative learning rate at these points, of the shape of `s`. `falling` is their last coordinate, of
    the same shape; None: it is the same all along a trial.
    """
    lengths, lasting, config, config_length, own, own_length = _unpack(theta)
    gap = np.abs(s[:, :, None] - s[:, None, :])
    amplitude = np.exp(theta[-1] * (s[:, :, None] + s[:, None, :]))
    own_part = own**2 * np.exp(-gap / own_length)
    of_config = lasting**2 + config**2 * _matern32(gap, config_length)
    if falling is not None:
        of_config = of_config * _matern52(np.abs(falling[:, :, None] - falling[:, None, :]) / lengths[-1])
    lift = np.exp(2 * theta[-3]) * rate[:, :, None] * rate[:, None, :]
    return np.asarray(_matern32(gap, _SHARED_LENGTH) * _SHARED**2 + amplitude * (of_config + own_part) + lift)


def _lift(theta: Array, a: Points, b: Points) -> Array:
    near = _matern52(np.abs(a.peak[:, None] - b.peak[None, :]) / _LIFT_LENGTH)
    return np.asarray(np.exp(2 * theta[-3]) * a.rate[:, None] * b.rate[None, :] * near)


def _matern52(gap: Array) -> Array:
    scaled = np.sqrt(5) * gap
    return np.asarray((1 + scaled + scaled**2 / 3) * np.exp(-scaled))


def _matern32(gap: Array, length: float) -> Array:
    scaled = np.sqrt(3) * gap / length
    return np.asarray((1 + scaled) * np.exp(-scaled))


def noise_variance(theta: Array) -> float:
    """Return the noise variance of one evaluation, in standardised units."""
    return float(np.exp(2 * theta[-2]))


def squared_distances(a: Array, b: Array) -> Array:
    """Return the squared distances between rows, [len(a), len(b)]."""
    squares = np.sum(a**2, 1)[:, None] + np.sum(b**2, 1)[None] - 2 * a @ b.T
    return np.asarray(np.maximum(squares, 0.0))


def _distance(a: Array, b: Array) -> Array:
    return np.asarray(np.sqrt(5 * squared_distances(a, b)))


def _terms(theta: Array, points: Points) -> dict[str, Array]:
    """Return the parts of the covariance of points with themselves, from which its derivatives are computed."""
    lengths, lasting, config, config_length, own, own_length = _unpack(theta)
    gap = np.abs(points.s[:, None] - points.s[None, :])
    r = _distance(points.x / lengths, points.x / lengths)
    decay = np.exp(-r)
    u, v = np.sqrt(3) * gap / config_length, gap / own_length
    amplitude = np.exp(theta[-1] * (points.s[:, None] + points.s[None, :]))
    along = config**2 * amplitude * np.exp(-u)
    between = (1 + r + r**2 / 3) * decay
    same = points.trial[:, None] == points.trial[None, :]
    return {
        "shared": _SHARED**2 * _matern32(gap, _SHARED_LENGTH),
        "lasting": lasting**2 * amplitude * between,
        "config": along * (1 + u) * between,
        "own": own**2 * amplitude * np.exp(-v) * same,
        "by_length": (lasting**2 * amplitude + along * (1 + u)) * (1 + r) * decay * (5 / 3),
        "by_config_length": along * u**2 * between,
        "v": v,
        "lift": _lift(theta, points, points),
    }


def _unpack(theta: Array) -> tuple[Array, float, float, float, float, float]:
    lengths = np.exp(theta[: -len(_COMMON)])
    lasting, config, config_length, own, own_length = np.exp(theta[-len(_COMMON) : -3])
    return lengths, float(lasting), float(config), float(config_length), float(own), float(own_length)


def fit(points: Points, y: Array, extra: Array, start: Array, most_steps: int) -> Array:
    """Return the most probable parameters given standardised values `y`, each with `extra` noise variance.

    L-BFGS-B from `start`, with at most `most_steps` iterations, within three standard deviations of the priors.
    """
    mean, deviation = prior(points.x.shape[1])
    squares = [(points.x[:, k, None] - points.x[None, :, k]) ** 2 for k in range(points.x.shape[1])]
    objective = _objective(points, y, extra, squares, mean, deviation)
    bounds = list(zip(mean - 3 * deviation, mean + 3 * deviation, strict=True))
    found = scipy.optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": most_steps}
    )
    return np.asarray(found.x)


def _objective(
    points: Points, y: Array, extra: Array, squares: list[Array], mean: Array, deviation: Array
) -> Callable[[Array], tuple[float, Array]]:
    """Return a function of the parameters: the negative log posterior (up to a constant), and its gradient."""
    sums = points.s[:, None] + points.s[None, :]

    def value(theta: Array) -> tuple[float, Array]:
        terms = _terms(theta, points)
        k = terms["shared"] + terms["lasting"] + terms["config"] + terms["own"] + terms["lift"]
        k[np.diag_indices_from(k)] += noise_variance(theta) + extra + _JITTER
        lower = scipy.linalg.cholesky(k, lower=True, check_finite=False)
        inverse = scipy.linalg.lapack.dpotri(lower, lower=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        weights = inverse @ y
        z = (theta - mean) / deviation
        loss = 0.5 * y @ weights + np.sum(np.log(np.diag(lower))) + 0.5 * z @ z
        return float(loss), _gradient(theta, terms, squares, sums, inverse - np.outer(weights, weights)) + z / deviation

    return value


def _gradient(theta: Array, terms: dict[str, Array], squares: list[Array], sums: Array, spread: Array) -> Array:
    """Return half the trace of `spread` times the covariance's derivative with respect to each parameter."""
    by_length = spread * terms["by_length"]
    lasting, config, own = (spread * terms[name] for name in ("lasting", "config", "own"))
    lengths = [0.5 * np.vdot(by_length, square) / np.exp(2 * theta[k]) for k, square in enumerate(squares)]
    common = [
        np.sum(lasting),
        np.sum(config),
        0.5 * np.vdot(spread, terms["by_config_length"]),
        np.sum(own),
        0.5 * np.vdot(own, terms["v"]),
        np.vdot(spread, terms["lift"]),
        np.trace(spread) * noise_variance(theta),
        0.5 * np.vdot(lasting + config + own, sums),
    ]
    return np.array(lengths + common)


def solve(theta: Array, points: Points, y: Array, extra: Array) -> tuple[Array, Array]:
    """Return the lower Cholesky factor of the values' covariance, and the values whitened by it."""
    k = covariance(theta, points, points)
    k[np.diag_indices_from(k)] += noise_variance(theta) + extra + _JITTER
    lower: Any = scipy.linalg.cholesky(k, lower=True, check_finite=False)
    return lower, scipy.linalg.solve_triangular(lower, y, lower=True, check_finite=False)
