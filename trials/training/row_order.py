"""Which rows an optimizer step holds: those that transformers' `Trainer` takes, known for any step, in any order."""

from __future__ import annotations

import math

from accelerate.data_loader import SeedableRandomSampler


class RowOrder:
    """The row indices of every optimizer step of a trial. Belongs to one thread."""

    def __init__(self, rows: int, effective_batch: int, seed: int) -> None:
        """`rows` is how many there are to train on, `effective_batch` how many a step takes, both at least 1."""
        self._sampler = SeedableRandomSampler(range(rows), data_seed=seed)
        self._effective_batch = effective_batch
        self.steps_per_epoch = math.ceil(rows / effective_batch)
        """Optimizer steps of one pass over the rows; the last of them holds what is left."""
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def step(self, n: int) -> list[int]:
        """Row indices of optimizer step `n`, counted from 0 through all epochs, in the order of their slots."""
        epoch, step = divmod(n, self.steps_per_epoch)
        start = step * self._effective_batch
        return self._epoch(epoch)[start : start + self._effective_batch]

    def passes(self, steps: int) -> float:
        """Passes over the rows after so many steps; as `Trainer` counts them, up to the rounding of micro-batches."""
        epochs, step = divmod(steps, self.steps_per_epoch)
        return epochs + step * self._effective_batch / len(self._sampler)

    def _epoch(self, epoch: int) -> list[int]:
        """Row indices of an epoch; the latest is kept, as steps come in order."""
        if self._shuffled[0] != epoch:
            self._sampler.set_epoch(epoch)
            self._shuffled = (epoch, list(self._sampler))
        return self._shuffled[1]
