"""The processes that train one trial together, a GPU each; alone, nothing here does anything.

Every rank runs the same program on the same trial, with its part of the rows. What may differ between them, such as a
clock, a launcher's word or the memory that is left, is asked of all at the same place in the program, and all hear the
same answer. So a question that one rank asks, every rank must ask.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trials.errors import PeerError
from trials.system.oom import is_out_of_memory

_PATIENCE = timedelta(days=2)
"""Whoever starts the processes ends them all when one has ended or hangs; an answer may take as long as it likes."""

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """One process among those of a trial."""

    rank: int = 0
    world_size: int = 1
    _control: Any = None
    """The process group in which answers are exchanged, on the CPU; gradients go through the default group."""
    resting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Around everything that waits for the other ranks: who waits for one that hangs doesn't hang himself."""

    @property
    def is_first(self) -> bool:
        """Whether this one writes the trial's files and talks to its launcher."""
        return self.rank == 0

    def any(self, flag: bool = False) -> bool:
        """Whether any rank says so. Raises what `fail` said on another rank."""
        if self.world_size == 1:
            return flag
        failed, flagged = self._told(None, flag)
        if failed:
            raise _failure_elsewhere(failed == _OUT_OF_MEMORY, "its part of an optimizer step")
        return flagged

    def fail(self, error: Exception) -> None:
        """This rank can't go on: the others hear of it when they next `agree`.

        Nobody hears of what was heard from another rank: that one has gone on, and asks something else.
        """
        if self.world_size > 1 and not isinstance(error, PeerError | _OutOfMemoryElsewhere):
            self._told(error, False)

    def lost_one(self, error: BaseException) -> bool:
        """Whether it's what a collective raises when another rank has ended."""
        return self.world_size > 1 and (isinstance(error, dist.DistError) or "gloo/transport" in str(error))

    def sum(self, *tensors: torch.Tensor) -> None:
        """Adds up each tensor over all ranks, in place."""
        if self.world_size > 1:
            with self.resting():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def on_rank_zero(self, find: Callable[[], T]) -> T:
        """What the first rank finds; the others don't look."""
        return self.all_gather(lambda: find() if self.is_first else None)[0]  # type: ignore[return-value]

    def all_gather(self, work: Callable[[], T]) -> list[T]:
        """What every rank's work gives, in their order. What fails on one fails on all."""
        if self.world_size == 1:
            return [work()]
        value: T | None = None
        failure: Exception | None = None
        try:
            value = work()
        except Exception as error:
            failure = error
        said = None if failure is None else (is_out_of_memory(failure), f"{type(failure).__name__}: {failure}")
        answers: list[Any] = [None] * self.world_size
        with self.resting():
            dist.all_gather_object(answers, (value, said), group=self._control)
        if failure is not None:
            raise failure
        for _, problem in answers:
            if problem is not None:
                raise _failure_elsewhere(*problem)
        return [answer for answer, _ in answers]

    def own(self, make: Callable[[], T]) -> T:
        """What it makes on this rank, and no other sees. What fails on one fails on all."""
        made: list[T] = []
        self.all_gather(lambda: made.append(make()))
        return made[0]

    def map_sharded(self, items: Sequence[S], work: Callable[[Sequence[S]], Sequence[T]]) -> Sequence[T]:
        """What `work` gives for every item, done by one of the ranks; in the order of `items`."""
        if self.world_size == 1:
            return work(items)
        mine = items[self.rank :: self.world_size]
        found = self.all_gather(lambda: list(work(mine)) if mine else [])
        return [found[index % self.world_size][index // self.world_size] for index in range(len(items))]

    def shard(self, tokens: Sequence[int]) -> tuple[slice, bool]:
        """This rank's rows of an optimizer step, from their lengths, and whether they count.

        They are neighbours, at least one, about as many tokens for each rank. The last step of an epoch may have fewer
        rows than there are ranks: those that would have none pass the last row too, for nothing.
        """
        if len(tokens) < self.world_size:
            row = min(self.rank, len(tokens) - 1)
            return slice(row, row + 1), row == self.rank
        ends = list(accumulate(tokens))
        bounds = [0]
        for number in range(1, self.world_size):
            goal = ends[-1] * number / self.world_size
            allowed = range(bounds[-1] + 1, len(tokens) - (self.world_size - number) + 1)
            bounds.append(min(allowed, key=lambda end: abs(ends[end - 1] - goal)))
        bounds.append(len(tokens))
        return slice(bounds[self.rank], bounds[self.rank + 1]), True

    def _told(self, error: Exception | None, flag: bool) -> tuple[int, bool]:
        kind = 0 if error is None else _OUT_OF_MEMORY if is_out_of_memory(error) else _FAILED
        told = torch.tensor([kind, int(flag)])
        with self.resting():
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self._control)
        return int(told[0]), bool(told[1])


ALONE = ProcessGroup()

_OUT_OF_MEMORY, _FAILED = 1, 2


@contextmanager
def joined_process_group() -> Iterator[ProcessGroup]:
    """This process among those that torchrun or Ray's TorchTrainer started with it; alone where nobody did.

    Every rank must enter it, once. On a GPU it makes the rank's own the current one of the calling thread.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    yield _joined()
    # Only in peace: after an error others may wait in a collective for ever.
    if dist.is_initialized():
        dist.destroy_process_group()


def _joined() -> ProcessGroup:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo")
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), control)


class _OutOfMemoryElsewhere(torch.OutOfMemoryError):
    """For this rank it's no other than its own, except that all know of it."""


def _failure_elsewhere(is_memory: bool, said: str) -> Exception:
    if is_memory:
        return _OutOfMemoryElsewhere(f"out of memory on another of the trial's GPUs: {said}")
    return PeerError(f"on another of the trial's GPUs: {said}")
