"""A table of learning curves (`benchmarks.simulator.record_curves` made it) as a landscape of the simulator."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.simulator.simulator import Curve
from search_spaces.loader import load_recipe
from search_spaces.schema import Choices, Dimension, Recipe
from trials.config import Hyperparameters

TABLE = Path(__file__).with_name("demo_curves.csv")
BASE_LOSS = 3.1716
"""Loss of the demo's base model on the demo's eval rows, in nats per token."""
_ABOUT_THE_RUN = ("configuration", "seed", "ending", "tokens", "eval_loss", "seconds")


@dataclass(frozen=True)
class Recorded:
    """One configuration, and the curve of every seed that it was trained with."""

    number: int
    values: Mapping[str, Any]
    curves: Sequence[Sequence[tuple[float, float]]]


@cache
def recorded(path: Path = TABLE) -> tuple[Recorded, ...]:
    """Return all configurations of a table; fractions are of the tokens of each trial's last evaluation."""
    runs: dict[tuple[int, int], list[dict[str, str]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs.setdefault((int(row["configuration"]), int(row["seed"])), []).append(row)
    found: dict[int, list[Sequence[tuple[float, float]]]] = {}
    values: dict[int, dict[str, Any]] = {}
    for (number, _), rows in sorted(runs.items()):
        last = float(rows[-1]["tokens"])
        found.setdefault(number, []).append([(float(r["tokens"]) / last, float(r["eval_loss"])) for r in rows])
        values[number] = _values(rows[0])
    return tuple(Recorded(number, values[number], curves) for number, curves in found.items())


def _values(row: Mapping[str, str]) -> dict[str, Any]:
    """Return a configuration as in the recipe's space."""
    found: dict[str, Any] = {}
    for name, dimension in demo_space().items():
        number = float(row[name])
        choices = dimension.choices if isinstance(dimension, Choices) else ()
        found[name] = next((c for c in choices if float(c) == number), number)  # type: ignore[arg-type]
    return found


class RecordedCurves:
    """A landscape in which every trial is a recorded one: the nearest configuration that this search hasn't had yet.

    A searcher has to know what it can get: `beside` returns all configurations, `nearest` the one for a proposal. A
    searcher that is told of another configuration than it got would learn from a landscape that doesn't exist.
    """

    base_loss = BASE_LOSS

    def __init__(self, seed: int, path: Path = TABLE) -> None:
        self._lot = random.Random(seed)
        self._path = path
        self._space = demo_space()
        self._left = list(recorded(path))
        self._at = {each.number: self._coordinates(each.values) for each in self._left}
        self._taken: dict[str, Curve] = {}
        self.finals: dict[str, float] = {}
        """Lowest loss of every trial's configuration, whether it was trained that far or not."""

    def curve(self, trial_id: str, hyperparameters: Hyperparameters) -> Curve:
        """Return the curve of the nearest configuration that is left; no later trial gets it again."""
        return self.draw(trial_id, hyperparameters.model_dump())

    def draw(self, trial_id: str, values: Mapping[str, Any]) -> Curve:
        """Return a curve as `curve` does, for plain values. The trial `probe` uses no configuration up."""
        if trial_id not in self._taken:
            nearest = self._nearest(values)
            if trial_id != "probe":
                self._left.remove(nearest)
            points = self._lot.choice(nearest.curves)
            self._taken[trial_id] = Curve(points)
            self.finals[trial_id] = min(loss for _, loss in points)
        return self._taken[trial_id]

    def beside(self, recipe: Recipe) -> list[Mapping[str, Any]]:
        """Return all configurations of the table but those that the recipe's starting points get."""
        taken = [self._nearest(recipe.start_values(name)).number for name in recipe.start]
        return [each.values for each in recorded(self._path) if each.number not in taken]

    @property
    def is_used_up(self) -> bool:
        """Whether the search has had every configuration."""
        return not self._left

    def nearest(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the nearest of the configurations that are left."""
        return self._nearest(values).values

    def _nearest(self, values: Mapping[str, Any]) -> Recorded:
        wanted = self._coordinates(values)
        return min(self._left, key=lambda each: math.dist(wanted, self._at[each.number]))

    def _coordinates(self, values: Mapping[str, Any]) -> list[float]:
        return [_coordinate(values[name], dimension) for name, dimension in self._space.items()]


def best_final(path: Path = TABLE) -> float:
    """Return the lowest loss of the table, from which regret is counted."""
    return min(min(loss for _, loss in curve) for each in recorded(path) for curve in each.curves)


@cache
def demo_space() -> Mapping[str, Dimension]:
    """Return the space of the demo's search."""
    return load_recipe("demo", [], environ={}).recipe.space


def _coordinate(value: Any, dimension: Dimension) -> float:
    """Return a value as a number between 0 and 1; of choices, by their position."""
    if isinstance(dimension, Choices):
        choices = sorted(float(choice) for choice in dimension.choices)  # type: ignore[arg-type]
        return choices.index(float(value)) / max(1, len(choices) - 1)
    low, high, at = dimension.low, dimension.high, float(value)
    if dimension.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)
