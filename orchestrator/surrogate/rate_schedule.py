"""Learning rate along a trial, as a coordinate: under a rate that falls, much of the progress comes late."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution

from orchestrator.surrogate.encoding import Array, SpaceEncoder

RATE = "learning_rate"
_SMALLEST = 0.05
"""Share of its peak below which a rate counts as this: the last step has almost none."""
_RELATIVE: dict[str, Callable[[Array], Array]] = {
    "cosine": lambda done: 0.5 * (1 + np.cos(np.pi * done)),
    "linear": lambda done: 1 - done,
}


class RateSchedule:
    """Logarithm of the learning rate at a fraction of a trial, in units of the coordinate of its peak.

    Warm-up is left out.
    """

    def __init__(self, relative: Callable[[Array], Array], span: float, column: int) -> None:
        self._relative, self._span, self._column = relative, span, column

    def relative(self, fractions: Array) -> Array:
        """Return the learning rate relative to its peak, [count], at fractions [count]."""
        return self._relative(np.minimum(fractions, 1.0))

    def peak(self, x: Array) -> Array:
        """Return the coordinate of the peak, [count], of encoded configurations [count, dimensions]."""
        return np.asarray(x[:, self._column])

    def coordinate(self, x: Array, fractions: Array) -> Array:
        """Return the coordinate for encoded configurations [count, dimensions] at fractions [count]: [count]."""
        return self.peak(x) + np.log(np.maximum(self.relative(fractions), _SMALLEST)) / self._span


def rate_schedule(scheduler: str, space: Mapping[str, BaseDistribution], encoder: SpaceEncoder) -> RateSchedule | None:
    """Return the schedule of a name that transformers has; None: the learning rate doesn't fall under it.

    None as well where the space doesn't vary the rate on a logarithmic scale: all trials have one rate at a fraction,
    and the coordinate would only make early losses say less about late ones.
    """
    relative, rate = _RELATIVE.get(scheduler), space.get(RATE)
    if relative is None or not isinstance(rate, FloatDistribution) or not rate.log or rate.low >= rate.high:
        return None
    (column,) = encoder.columns(RATE)
    return RateSchedule(relative, float(np.log(rate.high / rate.low)), column)
