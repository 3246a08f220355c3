"""Encodes configurations as numbers: as draws, and as coordinates of about 0 to 1 for the model.

A draw is a row with one number per dimension: a range's value mapped to 0 to 1, or the index of a choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Array = NDArray[np.float64]

_STEP = 0.1
_CHANGED = 0.5
_DIGITS = 9


class SpaceEncoder:
    """Encoder of a search space, given as Optuna's distributions; `count` is the number of coordinates."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self._space = space
        self._tables = {name: _table(each) for name, each in space.items() if isinstance(each, CategoricalDistribution)}
        self.count = sum(self._tables[name].shape[1] if name in self._tables else 1 for name in space) or 1

    def columns(self, name: str) -> list[int]:
        """Return the coordinates that belong to a dimension of the space; empty if it has no such dimension."""
        first = 0
        for each in self._space:
            width = self._tables[each].shape[1] if each in self._tables else 1
            if each == name:
                return list(range(first, first + width))
            first += width
        return []

    def encode(self, values: Mapping[str, Any]) -> Array:
        """Return the coordinates of one configuration, [count]."""
        return np.asarray(self.encode_many(self.to_unit(values)[None])[0])

    def sample(self, count: int, random: np.random.Generator) -> Array:
        """Return uniform draws, [count, dimensions]."""
        columns = [
            random.integers(len(each.choices), size=count).astype(float)
            if isinstance(each, CategoricalDistribution)
            else random.random(count)
            for each in self._space.values()
        ]
        return np.stack(columns, 1) if columns else np.zeros((count, 0))

    def perturb(self, values: Mapping[str, Any], count: int, random: np.random.Generator) -> Array:
        """Return draws that differ from a configuration in about half of its dimensions, by a step or a choice."""
        fresh = self.sample(count, random)
        own = self.to_unit(values)
        steps = np.clip(own + _STEP * random.standard_normal(fresh.shape), 0.0, 1.0)
        is_choice = np.array([isinstance(each, CategoricalDistribution) for each in self._space.values()], dtype=bool)
        moved = np.where(is_choice, fresh, steps)
        return np.where(random.random(fresh.shape) < _CHANGED, moved, own)

    def to_unit(self, values: Mapping[str, Any]) -> Array:
        """Return a configuration as a draw."""
        return np.array([_code(values[name], dimension) for name, dimension in self._space.items()])

    def keys(self, draws: Array) -> list[bytes]:
        """Return a key for each draw, equal for equal configurations.

        Many draws of an integer dimension are the same configuration, since values are rounded.
        """
        settled = draws.copy()
        for k, each in enumerate(self._space.values()):
            if isinstance(each, IntDistribution):
                low, high = _ends(each)
                values = low + draws[:, k] * (high - low)
                values = np.round(np.clip(np.exp(values) if each.log else values, each.low, each.high))
                settled[:, k] = ((np.log(values) if each.log else values) - low) / (high - low)
        return [row.tobytes() for row in np.round(settled, _DIGITS) + 0.0]  # -0.0 and 0.0 are one

    def encode_many(self, draws: Array) -> Array:
        """Return the coordinates of draws, [len(draws), self.count]."""
        columns = [
            self._tables[name][draws[:, k].astype(int)] if name in self._tables else draws[:, k : k + 1]
            for k, name in enumerate(self._space)
        ]
        return np.asarray(np.concatenate(columns, 1)) if columns else np.zeros((len(draws), 1))

    def decode(self, draw: Array) -> dict[str, Any]:
        """Return the configuration of one draw, with values as in the recipe's space."""
        return {name: _value(each, float(draw[k])) for k, (name, each) in enumerate(self._space.items())}


def _table(dimension: CategoricalDistribution) -> Array:
    """Return coordinates per choice: numbers lie on a line (logarithmic if positive), others are equally far apart."""
    numbers = [c for c in dimension.choices if isinstance(c, int | float) and not isinstance(c, bool)]
    if len(numbers) < len(dimension.choices) or len(set(numbers)) < 2:
        return np.asarray(np.sqrt(0.5) * np.eye(len(dimension.choices)))
    line = np.log(numbers) if min(numbers) > 0 else np.array(numbers, dtype=float)
    return np.asarray(((line - line.min()) / (line.max() - line.min()))[:, None])


def _code(value: Any, dimension: BaseDistribution) -> float:
    if isinstance(dimension, CategoricalDistribution):
        return float(dimension.choices.index(value))
    low, high = _ends(dimension)
    if high == low:
        return 0.0
    return float(((np.log(value) if _is_log(dimension) else value) - low) / (high - low))


def _value(dimension: BaseDistribution, code: float) -> Any:
    if isinstance(dimension, CategoricalDistribution):
        return dimension.choices[int(code)]
    assert isinstance(dimension, FloatDistribution | IntDistribution)
    low, high = _ends(dimension)
    value = low + code * (high - low)
    value = float(np.clip(np.exp(value) if dimension.log else value, dimension.low, dimension.high))
    return round(value) if isinstance(dimension, IntDistribution) else value


def _ends(dimension: BaseDistribution) -> tuple[float, float]:
    assert isinstance(dimension, FloatDistribution | IntDistribution)
    if dimension.log:
        return float(np.log(dimension.low)), float(np.log(dimension.high))
    return dimension.low, dimension.high


def _is_log(dimension: BaseDistribution) -> bool:
    return isinstance(dimension, FloatDistribution | IntDistribution) and dimension.log
