"""Configurations that can't be trained: too large for the memory, or with a learning rate at which they diverge.

Memory grows with some hyperparameters and depends on no chance: a configuration that needs at least as much as one that
ran out of memory is excluded. Divergence is a matter of the learning rate. It is learned in one direction only, so that
a failure by chance, below rates that were trained, says nothing about the rest of the space.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from scipy.special import expit

from orchestrator.surrogate.encoding import Array, SpaceEncoder
from orchestrator.surrogate.rate_schedule import RATE

_MEMORY_GROWS_WITH = ("lora_rank", "effective_batch")
_MEMORY_DEPENDS_ON = ("target_modules", "use_dora", "optimizer", "gradient_checkpointing")
_RIDGE = 0.03
_STEPS = 30
_MARGIN = 1e-9


class FeasibilityModel:
    """Probability that configurations can be trained, from those that diverged, ran out of memory, or were trained.

    Logistic regression on the learning rate's coordinate, whose slope is not positive. In a space without a learning
    rate nothing is learned of divergence.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], encoder: SpaceEncoder) -> None:
        self._rate = encoder.columns(RATE)
        self._grows = [column for name in _MEMORY_GROWS_WITH for column in encoder.columns(name)]
        self._alike = [column for name in _MEMORY_DEPENDS_ON for column in encoder.columns(name)]
        self._weights: tuple[float, float] | None = None
        self._too_large: Array = np.zeros((0, encoder.count))

    def fit(self, diverged: Array, too_large: Array, trained: Array) -> None:
        """Fit to the coordinates [count, dimensions] of all that diverged, ran out of memory, and were trained."""
        self._too_large = too_large
        if not len(diverged) or not self._rate:
            self._weights = None
            return
        rate = self._scaled(np.concatenate([diverged, trained]))
        is_trained = np.concatenate([np.zeros(len(diverged)), np.ones(len(trained))])
        self._weights = _fit_falling(rate, is_trained)

    def predict(self, x: Array) -> Array:
        """Return the probability for each row of `x` [count, dimensions]; 1.0 while nothing has failed."""
        chance = np.ones(len(x))
        if self._weights is not None:
            level, slope = self._weights
            chance = np.asarray(expit(level + slope * self._scaled(x)))
        return np.where(self._is_too_large(x), 0.0, chance)

    def _scaled(self, x: Array) -> Array:
        """Return the learning rate's coordinate, from -2 to 2, for which the ridge is small."""
        return np.asarray(4 * x[:, self._rate[0]] - 2)

    def _is_too_large(self, x: Array) -> NDArray[np.bool_]:
        """Whether a configuration is at least as large as one that ran out of memory and alike in all else."""
        if not len(self._too_large) or not self._grows:
            return np.zeros(len(x), dtype=bool)
        grows = x[:, None, self._grows] >= self._too_large[None, :, self._grows] - _MARGIN
        alike = np.abs(x[:, None, self._alike] - self._too_large[None, :, self._alike]) <= _MARGIN
        is_as_large: NDArray[np.bool_] = np.all(grows, axis=2) & np.all(alike, axis=2)
        found: NDArray[np.bool_] = np.any(is_as_large, axis=1)
        return found


def _fit_falling(rate: Array, is_trained: Array) -> tuple[float, float]:
    """Return level and slope, at most 0, of a logistic regression, by Newton's method."""
    features = np.stack([np.ones(len(rate)), rate], 1)
    ridge = np.diag([0.01, _RIDGE])
    weights = np.zeros(2)
    for _ in range(_STEPS):
        chance = expit(features @ weights)
        slope = features.T @ (is_trained - chance) - ridge @ weights
        curvature = (features * (chance * (1 - chance))[:, None]).T @ features + ridge
        weights += np.clip(np.linalg.solve(curvature, slope), -5, 5)
    if weights[1] > 0:
        # Rates that failed lie below some that were trained: the rate doesn't explain it.
        share = (is_trained.sum() + 1) / (len(is_trained) + 2)
        return float(np.log(share / (1 - share))), 0.0
    return float(weights[0]), float(weights[1])
