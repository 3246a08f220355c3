"""TRL's way with several processes: which rows each of them takes of an optimizer step, in micro-batches.

accelerate's own division repeats rows where the last step of an epoch can't be divided evenly, which changes the step.
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
    """The most rows that one process has of an optimizer step."""
    return math.ceil(effective_batch / ranks.world_size)


class RankBatchSampler(BatchSampler):
    """The row indices of one rank's micro-batches, epoch by epoch; every rank has as many, some of them empty.

    The rows of a step are those of one process, in its order: neighbours for each rank.
    """

    def __init__(self, rows: int, effective_batch: int, micro_batch: int, seed: int, ranks: ProcessGroup) -> None:
        """`rows` is how many there are to train on; `micro_batch` divides `rows_of_a_rank`."""
        self._order = RowOrder(rows, effective_batch, seed)
        self._rows, self._effective_batch, self._micro_batch = rows, effective_batch, micro_batch
        self._ranks = ranks
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer as an epoch begins."""
        self._epoch = epoch

    def first_slot(self, step: int) -> int:
        """Where this rank's rows begin among those of an optimizer step, counted from 0 through all epochs."""
        return self._bounds(self._size(step))[0]

    def __iter__(self) -> Iterator[list[int]]:
        steps = self._order.steps_per_epoch
        for step in range(self._epoch * steps, (self._epoch + 1) * steps):
            size = self._size(step)
            mine = self._order.step(step)[slice(*self._bounds(size))]
            for number in range(self._micro_batches(size)):
                yield mine[number * self._micro_batch : (number + 1) * self._micro_batch]

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        last = self._order.steps_per_epoch - 1
        return last * self._micro_batches(self._effective_batch) + self._micro_batches(self._size(last))

    def _size(self, step: int) -> int:
        """Rows of a step: the last of an epoch holds what is left."""
        begun = step % self._order.steps_per_epoch * self._effective_batch
        return min(self._effective_batch, self._rows - begun)

    def _bounds(self, size: int) -> tuple[int, int]:
        """Of this rank's rows in a step of so many."""
        number, count = self._ranks.rank, self._ranks.world_size
        return size * number // count, size * (number + 1) // count

    def _micro_batches(self, size: int) -> int:
        return math.ceil(rows_of_a_rank(size, self._ranks) / self._micro_batch)


class RankLoader(DataLoader[Any]):
    """Loads a rank's micro-batches; an empty one becomes a row of one token of which nothing is learned.

    Its attention mask is zero: it counts as no token. The model is to see it all the same (`seen`).
    """

    def __init__(
        self, dataset: Any, batches: RankBatchSampler, collate: Callable[[Examples], Batch], *, pin_memory: bool
    ) -> None:
        def collated(examples: Examples) -> Batch:
            return collate(examples) if examples else _silent(collate)

        super().__init__(dataset, batch_sampler=batches, collate_fn=collated, pin_memory=pin_memory)
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer as an epoch begins."""
        self._batches.set_epoch(epoch)


def seen(batch: Batch) -> Batch:
    """A micro-batch as the model sees it: attention over no token at all is no number on some devices."""
    mask = batch["attention_mask"]
    return batch if bool(mask.any()) else {**batch, "attention_mask": torch.ones_like(mask)}


def _silent(collate: Callable[[Examples], Batch]) -> Batch:
    batch = collate([{"input_ids": [0], "labels": [IGNORED]}])
    batch["attention_mask"].zero_()
    return batch
