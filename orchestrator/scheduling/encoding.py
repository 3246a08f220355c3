"""Configurations as numbers: coordinates of about 0 to 1 for the model, and many drawn at once.

A draw is a row with one number for each dimension: the uniform number behind a range's value, or a choice's index.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.schema import Choices, Dimension, Range, is_integer

Array = NDArray[np.float64]

_STEP = 0.1
_CHANGED = 0.5
_DIGITS = 9


class SpaceEncoder:
    """A recipe's space, seen by the model."""

    def __init__(self, space: Mapping[str, Dimension]) -> None:
        self._space = space
        self._tables = {name: _table(each) for name, each in space.items() if isinstance(each, Choices)}
        self.count = sum(self._tables[name].shape[1] if name in self._tables else 1 for name in space) or 1

    def encode(self, values: Mapping[str, Any]) -> Array:
        """The coordinates of one configuration."""
        return np.asarray(self.encode_many(self.to_unit(values)[None])[0])

    def sample(self, count: int, random: np.random.Generator) -> Array:
        """Uniform draws (count, dimensions)."""
        columns = [
            random.integers(len(each.choices), size=count).astype(float)
            if isinstance(each, Choices)
            else random.random(count)
            for each in self._space.values()
        ]
        return np.stack(columns, 1) if columns else np.zeros((count, 0))

    def perturb(self, values: Mapping[str, Any], count: int, random: np.random.Generator) -> Array:
        """Draws that differ from a configuration in about half of its dimensions: a step in a range, another choice."""
        fresh = self.sample(count, random)
        own = self.to_unit(values)
        steps = np.clip(own + _STEP * random.standard_normal(fresh.shape), 0.0, 1.0)
        is_choice = np.array([isinstance(each, Choices) for each in self._space.values()], dtype=bool)
        moved = np.where(is_choice, fresh, steps)
        return np.where(random.random(fresh.shape) < _CHANGED, moved, own)

    def to_unit(self, values: Mapping[str, Any]) -> Array:
        """A configuration as a draw."""
        return np.array([_code(values[name], dimension) for name, dimension in self._space.items()])

    def keys(self, draws: Array) -> list[bytes]:
        """One for each draw, the same for the same configuration: where values are integers many draws are one."""
        settled = draws.copy()
        for k, (name, each) in enumerate(self._space.items()):
            if not isinstance(each, Choices) and is_integer(name):
                low, high = _ends(each)
                values = low + draws[:, k] * (high - low)
                values = np.round(np.clip(np.exp(values) if each.log else values, each.low, each.high))
                settled[:, k] = ((np.log(values) if each.log else values) - low) / (high - low)
        return [row.tobytes() for row in np.round(settled, _DIGITS) + 0.0]  # -0.0 and 0.0 are one

    def encode_many(self, draws: Array) -> Array:
        """The coordinates (count, self.count) of draws."""
        columns = [
            self._tables[name][draws[:, k].astype(int)] if name in self._tables else draws[:, k : k + 1]
            for k, name in enumerate(self._space)
        ]
        return np.asarray(np.concatenate(columns, 1)) if columns else np.zeros((len(draws), 1))

    def decode(self, draw: Array) -> dict[str, Any]:
        """The configuration of one draw, as in the recipe's space."""
        return {name: _value(name, each, float(draw[k])) for k, (name, each) in enumerate(self._space.items())}


def _table(dimension: Choices) -> Array:
    """A row of coordinates for each choice: numbers lie on a line (by logarithm if positive), others apart."""
    numbers = [c for c in dimension.choices if isinstance(c, int | float) and not isinstance(c, bool)]
    if len(numbers) < len(dimension.choices) or len(set(numbers)) < 2:
        return np.asarray(np.sqrt(0.5) * np.eye(len(dimension.choices)))
    line = np.log(numbers) if min(numbers) > 0 else np.array(numbers, dtype=float)
    return np.asarray(((line - line.min()) / (line.max() - line.min()))[:, None])


def _code(value: Any, dimension: Dimension) -> float:
    if isinstance(dimension, Choices):
        plain = list(value) if isinstance(value, list | tuple) else value
        return float(dimension.choices.index(plain))
    low, high = _ends(dimension)
    return float(((np.log(value) if dimension.log else value) - low) / (high - low))


def _value(name: str, dimension: Dimension, code: float) -> Any:
    if isinstance(dimension, Choices):
        return dimension.choices[int(code)]
    low, high = _ends(dimension)
    value = low + code * (high - low)
    value = float(np.clip(np.exp(value) if dimension.log else value, dimension.low, dimension.high))
    return round(value) if is_integer(name) else value


def _ends(dimension: Range) -> tuple[float, float]:
    return (
        (float(np.log(dimension.low)), float(np.log(dimension.high)))
        if dimension.log
        else (dimension.low, dimension.high)
    )
