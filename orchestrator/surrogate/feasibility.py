"""Probability that a configuration can be trained at all.

scikit-learn's `LogisticRegression` can't be fitted while everything has failed, takes a second to import in the middle
of a session, and saves five lines.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from orchestrator.surrogate.encoding import Array

_RIDGE = 0.03
_NEWTON_STEPS = 8


class FeasibilityModel:
    """Probability that configurations can be trained, estimated from those that failed and those that did not.

    Logistic regression on the coordinates, their squares and their products. It can represent a threshold in the
    learning rate, or a corner of large LoRA ranks and batches.
    """

    def __init__(self) -> None:
        self._weights: Array | None = None

    def fit(self, failed: Array, trained: Array) -> None:
        """Fit to the coordinates of all that failed and of all that were trained, [count, dimensions] each."""
        if not len(failed):
            return
        features = _features(np.concatenate([failed, trained]))
        is_trained = np.concatenate([np.zeros(len(failed)), np.ones(len(trained))])
        weights = np.zeros(features.shape[1])
        ridge = _RIDGE * np.eye(features.shape[1])
        ridge[0, 0] = 0.01
        for _ in range(_NEWTON_STEPS):
            chance = expit(features @ weights)
            slope = features.T @ (is_trained - chance) - ridge @ weights
            curvature = (features * (chance * (1 - chance))[:, None]).T @ features + ridge
            weights += np.clip(np.linalg.solve(curvature, slope), -5, 5)
        self._weights = weights

    def predict(self, x: Array) -> Array:
        """Return the probability for each row of `x` [count, dimensions]; 1.0 while nothing has failed."""
        return np.ones(len(x)) if self._weights is None else np.asarray(expit(_features(x) @ self._weights))


def _features(x: Array) -> Array:
    centered = 2 * x - 1
    first, second = np.triu_indices(x.shape[1])
    return np.concatenate([np.ones((len(x), 1)), 2 * centered, centered[:, first] * centered[:, second]], 1)
