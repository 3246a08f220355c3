"""Learning rate along a trial, as a coordinate: under a rate that falls, much of the progress comes late."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution

from orchestrator.surrogate.encoding import Array

RATE = "learning_rate"
_SMALLEST = 0.05
"""Share of its peak below which a rate counts as this: the last step has almost none."""
_SPAN = np.log(1000.0)
"""Logarithm of the range of learning rates where the space doesn't vary them, or not on a logarithmic scale."""
_RELATIVE: dict[str, Callable[[Array], Array]] = {
    "cosine": lambda done: 0.5 * (1 + np.cos(np.pi * done)),
    "linear": lambda done: 1 - done,
}


class RateSchedule:
    """Logarithm of the learning rate at a fraction of a trial, in units of the coordinate of its peak.

    Warm-up is left out.
    """

    def __init__(self, relative: Callable[[Array], Array], span: float, column: int | None) -> None:
        self._relative, self._span, self._column = relative, span, column

    def coordinate(self, x: Array, fractions: Array) -> Array:
        """Return the coordinate for encoded configurations [count, dimensions] at fractions [count]: [count]."""
        falls = np.log(np.maximum(self._relative(np.minimum(fractions, 1.0)), _SMALLEST)) / self._span
        return np.asarray(falls if self._column is None else x[:, self._column] + falls)


def rate_schedule(scheduler: str, rate: BaseDistribution | None, column: int | None) -> RateSchedule | None:
    """Return the schedule of a name that transformers has; None: the learning rate doesn't fall under it.

    `rate` is the distribution of the peak, and `column` its coordinate; None: the space doesn't vary it.
    """
    relative = _RELATIVE.get(scheduler)
    if relative is None:
        return None
    if isinstance(rate, FloatDistribution) and rate.log and rate.low < rate.high:
        return RateSchedule(relative, float(np.log(rate.high / rate.low)), column)
    return RateSchedule(relative, float(_SPAN), None)
