"""Learning curves by the scaling law with learning-rate annealing (Tissue et al., arXiv 2408.11029).

The law: loss = L0 + A * S1^-alpha - C * S2. S1 is the sum of the learning rates so far. S2 is the annealing area: every
drop of the rate counts from then on, fading in with a memory of some steps (m = lambda * m + drop, summed up).

Here the schedule is a warm-up and a cosine down to 0. L0, A and C depend on the configuration:

- The heat h = rate / (best rate) * sqrt(16 / batch) is how far noise of the gradient lifts the loss at the full rate.
  L0 holds (g + c) * h and annealing takes c * h away again (C = c), so that g * h is left at the end.
- S1 is in units of the best rate over a full trial with batches of 16: fewer steps, or slower ones, achieve less.
- Rank, dropout and weight decay move L0 by a few hundredths; they can be seen from the beginning.

In the mild form c is small, and early losses say much about the last ones. In the strong form nearly all the progress
of hot configurations, which are the best, appears when the rate comes down. Until then cold ones lead.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.simulator.landscapes import Array, Curve, Task, Values
from search_spaces.schema import Choices, Range
from trials.config import Hyperparameters

Form = Literal["mild", "strong"]

TASKS = 8
"""Tasks of each form; they differ in the best values of the hyperparameters."""
_ANNEALED = {"mild": 0.06, "strong": 0.5}
"""The coefficient c: nats that annealing gains at heat 1."""
_A, _ALPHA = 0.06, 0.3
_LEFT = _A * _ALPHA
"""The coefficient g. With it the best heat is 1, where d/dh (A * h^-alpha + g * h) = 0."""
_GRID = 360
_MEMORY = 18
"""Memory of S2 in steps of the grid, 1 / (1 - lambda): a twentieth of a trial."""
_LOWEST, _BASE = 1.0, 3.0
FULL_TOKENS = 100_000
"""Tokens of a trial of `Lengths` that is as long as the recipe says."""
_MOST_PROGRESS, _OVERFITS = 2.5, 0.01


@dataclass(frozen=True)
class _Schedule:
    """Areas S1 (of a constant full rate: 1 at the end) and S2 (1 when the rate has come down), [grid + 1]."""

    s1: Array
    s2: Array


class Annealing(Task):
    """One landscape of a form; `number` draws the best learning rate, rank, dropout and weight decay."""

    base_loss = _BASE

    def __init__(self, form: Form, number: int) -> None:
        lot = random.Random(f"{form} {number}")
        self._annealed = _ANNEALED[form]
        self._best_rate = 10 ** lot.uniform(-3.3, -2.8)
        self._best_rank = lot.choice([8, 16, 32])
        self._best_dropout = lot.uniform(0.0, 0.1)
        self._best_decay = lot.uniform(0.0, 0.1)
        self.space = {
            "learning_rate": Range(low=3e-5, high=3e-3, log=True),
            "lora_rank": Choices(choices=(4, 8, 16, 32, 64)),
            "effective_batch": Choices(choices=(8, 16, 32)),
            "warmup_fraction": Range(low=0.0, high=0.2),
            "lora_dropout": Range(low=0.0, high=0.1),
            "weight_decay": Range(low=0.0, high=0.1),
        }
        self.start = {
            "learning_rate": 2e-4,
            "lora_rank": 16,
            "effective_batch": 16,
            "warmup_fraction": 0.03,
            "lora_dropout": 0.05,
            "weight_decay": 0.01,
        }

    def losses(self, configurations: Sequence[Values], fractions: Sequence[float]) -> Array:
        """Return the law's losses; none is above the base model's."""
        return np.array([self._law(values, np.asarray(fractions)) for values in configurations])

    def _law(self, values: Values, fractions: Array) -> Array:
        areas = schedule(values["warmup_fraction"])
        grid = np.linspace(0.0, 1.0, _GRID + 1)
        s1, s2 = np.interp(fractions, grid, areas.s1), np.interp(fractions, grid, areas.s2)
        rate, fewer = values["learning_rate"] / self._best_rate, 16 / values["effective_batch"]
        heat = rate * math.sqrt(fewer)
        l0 = self._floor(values) + (_LEFT + self._annealed) * heat
        progress = 2 * rate * fewer * np.maximum(s1, 1e-9)  # a cosine's own area is a half
        return np.asarray(np.minimum(l0 + _A * progress**-_ALPHA - self._annealed * heat * s2, _BASE))

    def _floor(self, values: Values) -> float:
        rank = 0.004 * math.log2(values["lora_rank"] / self._best_rank) ** 2
        dropout = 2.0 * (values["lora_dropout"] - self._best_dropout) ** 2
        return float(_LOWEST + rank + dropout + 2.0 * (values["weight_decay"] - self._best_decay) ** 2)


def schedule(warmup_fraction: float) -> _Schedule:
    """Return S1 and S2 along a linear warm-up and a cosine to 0. The warm-up is no annealing, so S2 ignores it."""
    at = np.linspace(0.0, 1.0, _GRID + 1)
    after = np.clip((at - warmup_fraction) / (1 - warmup_fraction), 0.0, 1.0)
    cosine = 0.5 * (1 + np.cos(np.pi * after))
    rates = np.where(at < warmup_fraction, at / max(warmup_fraction, 1e-9), cosine)
    s1 = np.concatenate([[0.0], np.cumsum((rates[1:] + rates[:-1]) / 2)]) / _GRID
    momentum, area, s2 = 0.0, 0.0, [0.0]
    for drop in -np.diff(cosine):
        momentum = (1 - 1 / _MEMORY) * momentum + float(drop)
        area += momentum / _MEMORY
        s2.append(area)
    return _Schedule(s1, np.array(s2))


class Lengths(Annealing):
    """Mild landscape whose curves depend on a trial's length and schedule.

    Progress is the sum of the rates, of which a trial twice as long makes twice as much. Too much of it overfits. The
    average that a trial under `inverse_sqrt` keeps is at any time as good as a cosine that ends then: it was so, or
    better, on the demo and on SmolLM2 (docs/scheduling.md).
    """

    def __init__(self, number: int) -> None:
        super().__init__("mild", number)

    def curve(self, trial_id: str, hyperparameters: Hyperparameters) -> Curve:
        """Return the curve of a configuration at its own length; it does not depend on the trial."""
        # The speed probe's length is in rows.
        length = (hyperparameters.train_tokens or FULL_TOKENS) / FULL_TOKENS
        grid = np.linspace(0.0, 1.0, _GRID // 4 + 1)[1:]
        values = hyperparameters.model_dump()
        if hyperparameters.is_open_ended:
            losses = np.array([self.losses_at(values, np.ones(1), length * fraction)[0] for fraction in grid])
        else:
            losses = self.losses_at(values, grid, length)
        return Curve(list(zip(grid.tolist(), losses.tolist(), strict=True)))

    def losses_at(self, values: Values, fractions: Array, length: float) -> Array:
        """Return the losses at fractions of a trial that is `length` times as long as the recipe's."""
        areas, grid = schedule(values["warmup_fraction"]), np.linspace(0.0, 1.0, _GRID + 1)
        s1, s2 = np.interp(fractions, grid, areas.s1), np.interp(fractions, grid, areas.s2)
        return self._at(values, length * s1, self._annealed * (1 - s2))

    def _at(self, values: Values, area: Array, lift: Any) -> Array:
        rate, fewer = values["learning_rate"] / self._best_rate, 16 / values["effective_batch"]
        heat = rate * math.sqrt(fewer)
        progress = 2 * rate * fewer * np.maximum(area, 1e-9)
        overfit = _OVERFITS * np.maximum(progress - _MOST_PROGRESS, 0) ** 2
        loss = self._floor(values) + (_LEFT + lift) * heat + _A * progress**-_ALPHA + overfit
        return np.asarray(np.minimum(loss, _BASE))
