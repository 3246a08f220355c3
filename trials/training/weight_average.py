"""Average of a trial's weights over its steps, beside the weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from trials.config import Hyperparameters


class WeightAverage:
    """Exponential moving average of trained weights, over about the last share of the trial at any time.

    After step t the weights of that step have a weight of 1 / (1 + share * (t - 1)), so the first step's are the first
    average, and no step depends on the trial's length. Weights that aren't finite make the average so for good: a trial
    that diverges is noticed by it.
    """

    def __init__(self, weights: Sequence[Tensor], share: float) -> None:
        """`weights` are the tensors that are trained, and stay those; the averages are in float32 or wider."""
        self._weights = weights
        self._share = share
        self.values = [_wide(weight.detach()).clone() for weight in weights]
        """Averages, in the order and the shapes of the weights."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after an optimizer step, counted from 1."""
        newest = 1 / (1 + self._share * (step - 1))
        for value, weight in zip(self.values, self._weights, strict=True):
            value.lerp_(weight.to(value.dtype), newest)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the averages in the weights' place inside the block; not a bit of either changes."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for number, weight in enumerate(self._weights):
            weight.data, self.values[number] = self.values[number], weight.data


def average_of(weights: Sequence[Tensor], hyperparameters: Hyperparameters) -> WeightAverage | None:
    """Return the average that a trial keeps of its weights; None: it keeps none."""
    share = hyperparameters.adapter_average
    return WeightAverage(weights, share) if share else None


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
