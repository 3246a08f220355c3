"""Pace of configurations that were not tried: how long each takes, relative to the mean trial."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.surrogate.encoding import Array

_RIDGE = 0.3
_MOST = 4.0
"""A configuration counts as at most so many times slower or faster than the mean."""


class PaceModel:
    """Ridge regression of the logarithm of trials' pace on their coordinates; without trials, all are equally fast."""

    def __init__(self) -> None:
        self._slopes: Array | None = None
        self._center: Array = np.zeros(0)
        self._mean = 0.0

    def fit(self, x: Array, pace: Sequence[float]) -> None:
        """Fit to the coordinates [count, dimensions] and the pace of all trials that were measured."""
        if not len(x):
            return
        logs = np.log(pace)
        self._center, self._mean = x.mean(0), float(logs.mean())
        centered = x - self._center
        curvature = centered.T @ centered + _RIDGE * np.eye(x.shape[1])
        self._slopes = np.asarray(np.linalg.solve(curvature, centered.T @ (logs - self._mean)), dtype=np.float64)

    def predict(self, x: Array) -> Array:
        """Return the pace for each row of `x` [count, dimensions]."""
        if self._slopes is None:
            return np.ones(len(x))
        logs = self._mean + (x - self._center) @ self._slopes
        return np.asarray(np.exp(np.clip(logs, -np.log(_MOST), np.log(_MOST))))
