"""Division of an optimizer step's rows among several processes, in micro-batches; for the TRL backend.

accelerate's own division repeats rows if the last step of an epoch can't be divided evenly, which changes the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from trials.data.tokenization import IGNORED
from trials.system.distributed import ProcessGroup
from trials.training.row_order import RowOrder

Examples = list[dict[str, Any]]
Batch = dict[str, torch.Tensor]


def rows_of_a_rank(effective_batch: int, ranks: ProcessGroup) -> int:
    """Return the most rows that one process has of an optimizer step."""
    return math.ceil(effective_batch / ranks.world_size)


class RankBatchSampler(BatchSampler):
    """Row indices of one rank's micro-batches, epoch by epoch; every rank has as many, some of them empty.

    The ranks together take the rows of a single process's step, in its order, each a contiguous part.
    """

    def __init__(self, rows: int, effective_batch: int, micro_batch: int, seed: int, ranks: ProcessGroup) -> None:
        """Set up for `rows` training rows; `micro_batch` divides `rows_of_a_rank`."""
        self._order = RowOrder(rows, effective_batch, seed)
        self._rows, self._effective_batch, self._micro_batch = rows, effective_batch, micro_batch
        self._ranks = ranks
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the trainer calls this as an epoch begins."""
        self._epoch = epoch

    def first_slot(self, step: int) -> int:
        """Return the index of this rank's first row in optimizer step `step`, counted from 0 through all epochs."""
        return self._bounds(self._size(step))[0]

    def __iter__(self) -> Iterator[list[int]]:
        steps = self._order.steps_per_epoch
        for step in range(self._epoch * steps, (self._epoch + 1) * steps):
            size = self._size(step)
            mine = self._order.step(step)[slice(*self._bounds(size))]
            for number in range(self._micro_batches(size)):
                yield mine[number * self._micro_batch : (number + 1) * self._micro_batch]

    def __len__(self) -> int:
        """Return the number of micro-batches of an epoch."""
        last = self._order.steps_per_epoch - 1
        return last * self._micro_batches(self._effective_batch) + self._micro_batches(self._size(last))

    def _size(self, step: int) -> int:
        """Return the rows of a step; the last step of an epoch has what is left."""
        begun = step % self._order.steps_per_epoch * self._effective_batch
        return min(self._effective_batch, self._rows - begun)

    def _bounds(self, size: int) -> tuple[int, int]:
        """Return the start and end of this rank's rows in a step of `size` rows."""
        number, count = self._ranks.rank, self._ranks.world_size
        return size * number // count, size * (number + 1) // count

    def _micro_batches(self, size: int) -> int:
        return math.ceil(rows_of_a_rank(size, self._ranks) / self._micro_batch)


class RankLoader(DataLoader[Any]):
    """Loader of a rank's micro-batches; an empty one becomes a row of one token of which nothing is learned.

    That row's attention mask is zero, so it counts as no token. The model must get it through `seen`.
    """

    def __init__(
        self, dataset: Any, batches: RankBatchSampler, collate: Callable[[Examples], Batch], *, pin_memory: bool
    ) -> None:
        def collated(examples: Examples) -> Batch:
            return collate(examples) if examples else _silent(collate)

        super().__init__(dataset, batch_sampler=batches, collate_fn=collated, pin_memory=pin_memory)
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the trainer calls this as an epoch begins."""
        self._batches.set_epoch(epoch)


def seen(batch: Batch) -> Batch:
    """Return a micro-batch as the model must see it: attention over no token at all gives NaN on some devices."""
    mask = batch["attention_mask"]
    return batch if bool(mask.any()) else {**batch, "attention_mask": torch.ones_like(mask)}


def _silent(collate: Callable[[Examples], Batch]) -> Batch:
    batch = collate([{"input_ids": [0], "labels": [IGNORED]}])
    batch["attention_mask"].zero_()
    return batch
