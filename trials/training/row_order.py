"""Rows of every optimizer step, the same as transformers' `Trainer` takes, for any step in any order."""

from __future__ import annotations

import math

from accelerate.data_loader import SeedableRandomSampler


class RowOrder:
    """Row indices of every optimizer step of a trial. Belongs to one thread."""

    def __init__(self, rows: int, effective_batch: int, seed: int) -> None:
        """Set up for `rows` training rows, of which a step takes `effective_batch`; both are at least 1."""
        self._sampler = SeedableRandomSampler(range(rows), data_seed=seed)
        self._effective_batch = effective_batch
        self.steps_per_epoch = math.ceil(rows / effective_batch)
        """Optimizer steps of one pass over the rows; the last of them holds what is left."""
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def step(self, n: int) -> list[int]:
        """Return the row indices of optimizer step `n`, counted from 0 through all epochs, in slot order."""
        epoch, step = divmod(n, self.steps_per_epoch)
        start = step * self._effective_batch
        return self._epoch(epoch)[start : start + self._effective_batch]

    def passes(self, steps: int) -> float:
        """Return the passes over the rows after `steps` optimizer steps.

        `Trainer` counts them in the same way, up to the rounding of micro-batches.
        """
        epochs, step = divmod(steps, self.steps_per_epoch)
        return epochs + step * self._effective_batch / len(self._sampler)

    def _epoch(self, epoch: int) -> list[int]:
        """Return the row indices of an epoch; only the latest is kept, because steps come in order."""
        if self._shuffled[0] != epoch:
            self._sampler.set_epoch(epoch)
            self._shuffled = (epoch, list(self._sampler))
        return self._shuffled[1]
