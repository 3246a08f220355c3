"""Ranks: the processes that train one trial together, one GPU each. For a single process nothing here does anything.

Every rank runs the same program on the same trial, with its part of the rows. Some values may differ between ranks: a
clock, a message of the launcher, the memory that is left. They are exchanged at one place in the program, and all ranks
get the same answer. So a method here that one rank calls, every rank must call.
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
"""Timeout of the control group. The launcher ends all ranks when one has ended or hangs, so an answer may take long."""

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """One rank of the processes that train a trial, and the exchanges between them."""

    rank: int = 0
    world_size: int = 1
    _control: Any = None
    """Process group of control messages, on the CPU; gradients use the default group. None: a single process."""
    resting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context of every wait for other ranks: a rank that waits for a hanging one doesn't hang itself."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the trial's files and talks to its launcher."""
        return self.rank == 0

    def any(self, flag: bool = False) -> bool:
        """Return whether `flag` is set on any rank. Raises the failure that another rank reported by `fail`."""
        if self.world_size == 1:
            return flag
        failed, flagged = self._told(None, flag)
        if failed:
            raise _failure_elsewhere(failed == _OUT_OF_MEMORY, "its part of an optimizer step")
        return flagged

    def fail(self, error: Exception) -> None:
        """Report that this rank can't go on; the other ranks raise it at their next `any`.

        A failure that came from another rank is not reported: that rank has gone on to another exchange.
        """
        if self.world_size > 1 and not isinstance(error, PeerError | _OutOfMemoryElsewhere):
            self._told(error, False)

    def lost_one(self, error: BaseException) -> bool:
        """Return whether an error is what a collective raises when another rank has ended."""
        return self.world_size > 1 and (isinstance(error, dist.DistError) or "gloo/transport" in str(error))

    def sum(self, *tensors: torch.Tensor) -> None:
        """Sum each tensor over all ranks, in place."""
        if self.world_size > 1:
            with self.resting():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def on_rank_zero(self, find: Callable[[], T]) -> T:
        """Call `find` on rank 0 alone, and return its result on every rank."""
        return self.all_gather(lambda: find() if self.is_first else None)[0]  # type: ignore[return-value]

    def all_gather(self, work: Callable[[], T]) -> list[T]:
        """Call `work` on every rank, and return the results in their order. One rank's failure is raised on all."""
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
        """Return what `make` creates on this rank; it is not sent to others. One rank's failure is raised on all."""
        made: list[T] = []
        self.all_gather(lambda: made.append(make()))
        return made[0]

    def map_sharded(self, items: Sequence[S], work: Callable[[Sequence[S]], Sequence[T]]) -> Sequence[T]:
        """Return the result of `work` for every item, in the order of `items`. Each item is done by one rank."""
        if self.world_size == 1:
            return work(items)
        mine = items[self.rank :: self.world_size]
        found = self.all_gather(lambda: list(work(mine)) if mine else [])
        return [found[index % self.world_size][index // self.world_size] for index in range(len(items))]

    def shard(self, tokens: Sequence[int]) -> tuple[slice, bool]:
        """Return this rank's rows of an optimizer step, and whether they count. `tokens` are the lengths of all rows.

        Every rank gets neighbouring rows, at least one, with about as many tokens as the others. The last step of an
        epoch may have fewer rows than there are ranks. A rank without a row of its own then passes the last row too,
        and it doesn't count.
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
    """Join this process to those that torchrun or Ray's TorchTrainer started with it; a single process is `ALONE`.

    Every rank must enter it, once. On a GPU, the rank's own becomes the current device of the calling thread.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    yield _joined()
    # Only without an error: after one, other ranks may wait in a collective for ever.
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
    """Out of memory on another rank. Handled as this rank's own, but not reported again: all ranks know of it."""


def _failure_elsewhere(is_memory: bool, said: str) -> Exception:
    if is_memory:
        return _OutOfMemoryElsewhere(f"out of memory on another of the trial's GPUs: {said}")
    return PeerError(f"on another of the trial's GPUs: {said}")
