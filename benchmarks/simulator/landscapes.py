"""Learning curves as searches meet them, and the tasks of the benchmark with the losses that regret is counted from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.schema import Choices, Dimension, is_integer
from trials.config import Hyperparameters
from trials.errors import InputError
from trials.state import TrialState

Array = NDArray[np.float64]
Values = Mapping[str, Any]
"""A configuration: hyperparameters as in a recipe's space."""

CURVES = Path(__file__).parents[3] / "shared" / "data" / "curves"
"""Folder with LCBench's surrogate and the PEFT table, where no other is given; neither is in the repository."""
_DRAWN = 1500
"""Random configurations whose median final loss is the typical one."""
_KEPT, _AROUND = 20, 15
"""Configurations that the search for the lowest loss keeps in each round, and draws around each of these."""
_STEPS = (0.2, 0.1, 0.05, 0.02)
"""Standard deviations of the draws in each round, where a range counts 1."""
_LOOKED_AT = tuple(k / 9 for k in range(1, 10))
"""Fractions of a full trial at which the lowest loss is looked for: some configurations overfit."""
_UNTRAINED = 90.0
"""Percentile of the first losses that stands for the base model's where a task doesn't have that."""


@dataclass(frozen=True)
class Curve:
    """Course of a trial: losses at fractions of it, its speed, and the point at which it breaks off, if it does."""

    points: Sequence[tuple[float, float]]
    """Pairs (fraction, eval loss), ascending; the last fraction is 1."""
    slowness: float = 1.0
    """Seconds per token, relative to the mean configuration's."""
    ending: TrialState = TrialState.FINISHED
    ends_at: float = 1.0
    """Fraction at which it diverges or runs out of memory."""

    def loss(self, fraction: float) -> float:
        """Return the loss at a fraction; between two points by a straight line."""
        before = (0.0, self.points[0][1])
        for after in self.points:
            if after[0] >= fraction - 1e-12:
                span = after[0] - before[0]
                share = (fraction - before[0]) / span if span else 1.0
                return before[1] + share * (after[1] - before[1])
            before = after
        return self.points[-1][1]


class Landscape(Protocol):
    """Source of the curves of all configurations."""

    base_loss: float

    def curve(self, trial_id: str, hyperparameters: Hyperparameters) -> Curve:
        """Return the curve of a trial; the same for every call with its id."""


@dataclass(frozen=True)
class Reference:
    """Losses without noise, in nats per token, that make regrets of different tasks comparable."""

    lowest: float
    """Lowest loss that was found with very many configurations."""
    typical: float
    """Median loss of full trials of random configurations."""

    def regret(self, loss: float) -> float:
        """Return the normalised regret: 0 is the best possible, 1 a random full trial."""
        return (loss - self.lowest) / (self.typical - self.lowest)


class Task(ABC):
    """Landscape of the benchmark: curves without noise over a space of the product's hyperparameters."""

    base_loss: float
    space: Mapping[str, Dimension]
    start: Values
    """The starting point, which every searcher tries first."""
    resolution: int = 36
    """Points of a curve, equally far apart."""

    @abstractmethod
    def losses(self, configurations: Sequence[Values], fractions: Sequence[float]) -> Array:
        """Return the losses of configurations at fractions of a full trial, [configurations, fractions]."""

    def curve(self, trial_id: str, hyperparameters: Hyperparameters) -> Curve:
        """Return the curve of a configuration; it does not depend on the trial."""
        fractions = [k / self.resolution for k in range(1, self.resolution + 1)]
        losses = self.losses([hyperparameters.model_dump()], fractions)[0]
        return Curve(list(zip(fractions, losses.tolist(), strict=True)))

    @cached_property
    def reference(self) -> Reference:
        """The lowest and the typical loss: of random configurations, and of ever closer ones around the best."""
        random = np.random.default_rng(0)
        configurations = drawn(self.space, _DRAWN, random)
        losses = self.losses(configurations, _LOOKED_AT)
        found = list(zip(losses.min(1).tolist(), configurations, strict=True))
        for step in _STEPS:
            found = sorted(found, key=lambda pair: pair[0])[:_KEPT]
            near = [nearby(self.space, values, step, random) for _, values in found for _ in range(_AROUND)]
            found += zip(self.losses(near, _LOOKED_AT).min(1).tolist(), near, strict=True)
        return Reference(min(loss for loss, _ in found), float(np.median(losses[:, -1])))


def untrained_loss(first_losses: Array) -> float:
    """Return what stands for the base model's loss, from the first losses of many configurations."""
    return float(np.percentile(first_losses, _UNTRAINED))


def drawn(space: Mapping[str, Dimension], count: int, random: np.random.Generator) -> list[Values]:
    """Return uniform random configurations; logarithmic ranges are uniform in the logarithm."""
    return [
        {name: _from_unit(name, each, share) for (name, each), share in zip(space.items(), row, strict=True)}
        for row in random.random((count, len(space))).tolist()
    ]


def nearby(space: Mapping[str, Dimension], values: Values, step: float, random: np.random.Generator) -> Values:
    """Return a configuration that differs in about half of its dimensions: by a normal step, or another choice."""
    found = dict(values)
    for name, dimension in space.items():
        share, moves, move = random.random(), random.random() < 0.5, random.normal(0.0, step)
        if moves and not isinstance(dimension, Choices):
            share = min(1.0, max(0.0, to_unit(dimension, values[name]) + move))
        if moves:
            found[name] = _from_unit(name, dimension, share)
    return found


def to_unit(dimension: Dimension, value: Any) -> float:
    """Return a value as a number from 0 to 1; of choices, by their position."""
    if isinstance(dimension, Choices):
        plain = list(value) if isinstance(value, tuple) else value
        return dimension.choices.index(plain) / max(1, len(dimension.choices) - 1)
    low, high, at = dimension.low, dimension.high, float(value)
    if dimension.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def _from_unit(name: str, dimension: Dimension, share: float) -> Any:
    if isinstance(dimension, Choices):
        return dimension.choices[min(int(share * len(dimension.choices)), len(dimension.choices) - 1)]
    if dimension.log:
        value = math.exp(math.log(dimension.low) + share * math.log(dimension.high / dimension.low))
    else:
        value = dimension.low + share * (dimension.high - dimension.low)
    value = min(max(value, dimension.low), dimension.high)
    return round(value) if is_integer(name) else value


def curves_file(curves: Path, name: str) -> Path:
    """Return a file of the folder with learning curves. Raises `InputError` if it is missing."""
    if not (curves / name).is_file():
        raise InputError(f"there is no {name} in {curves}. Give the folder of the learning curves by --curves DIR.")
    return curves / name
