"""A trial as the engine's loop sees it: an adapter that wants the rows of its optimizer steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trials.data.tokenization import TokenizedRow
from trials.engine.kernels.async_scalars import AsyncScalars
from trials.engine.lora.adapter import Adapter
from trials.engine.model.packed_batch import BatchSlice
from trials.engine.optim.flat import FlatOptimizer
from trials.system.distributed import ALONE, ProcessGroup


@dataclass(frozen=True)
class StepDone:
    """An optimizer step that was taken."""

    figures: AsyncScalars
    """Mean loss of the step's learned tokens, in nats, and the gradient's L2 norm before clipping."""
    learning_rate: float
    tokens: int
    ended_at: float
    """Seconds since the epoch; a GPU may be one micro-step behind."""


class AdapterTrainer:
    """Takes its optimizer steps as soon as their rows have passed. Belongs to the loop's thread while it trains."""

    def __init__(
        self,
        adapter: Adapter,
        flat_optimizer: FlatOptimizer,
        max_grad_norm: float | None,
        rows_of_step: Callable[[int], Sequence[TokenizedRow]],
        steps_done: int,
        ranks: ProcessGroup = ALONE,
    ) -> None:
        """`rows_of_step` gives the rows of an optimizer step, counted from 0; it's asked in order.

        Each of the `ranks` passes its part of them, and all take the same step with the sum of their gradients.
        """
        self.adapter = adapter
        self.steps_done = steps_done
        self.tokens_served = 0
        """Tokens that the engine has passed for it, by which trials take turns."""
        self.done: list[StepDone] = []
        """Steps since the trial last looked."""
        self.oom_tokens: list[int] = []
        """Tokens of the micro-steps that it took part in and that memory didn't suffice for."""
        self._flat_optimizer = flat_optimizer
        self._max_grad_norm = max_grad_norm
        self._rows_of_step = rows_of_step
        self._ranks = ranks
        self._rows: Sequence[TokenizedRow] = ()
        self._first_slot = 0
        self._step_tokens = 0
        self._passed = 0
        self._weight = 0.0
        self._loss: Tensor | None = None

    def begin_step(self) -> None:
        """Takes up the rows of the next optimizer step, from the first on; also after a step that was broken off."""
        rows = self._rows_of_step(self.steps_done)
        lengths = [len(row.input_ids) for row in rows]
        mine, is_counted = self._ranks.shard(lengths)
        self._rows, self._first_slot = rows[mine], mine.start
        self._step_tokens = sum(lengths)
        self._weight = 1 / sum(row.completion_tokens for row in rows) if is_counted else 0.0
        self._passed = 0
        self._loss = None
        self.adapter.gradient.zero_()

    def next_rows(self, manager: int) -> BatchSlice | None:
        """The next rows that fit into so many tokens; None if not even one does."""
        end = self._passed
        while end < len(self._rows) and len(self._rows[end].input_ids) <= manager:
            manager -= len(self._rows[end].input_ids)
            end += 1
        if end == self._passed:
            return None
        slot = self._first_slot + self._passed
        share = BatchSlice(self.adapter, self._rows[self._passed : end], self._weight, self.steps_done, slot)
        self._passed = end
        self.tokens_served += share.tokens
        return share

    @property
    def next_row_tokens(self) -> int:
        """Of the row that is next."""
        return len(self._rows[self._passed].input_ids)

    @property
    def may_step_again(self) -> bool:
        """Whether an optimizer step that memory didn't suffice for can be begun anew."""
        # Where there are other ranks, they have taken theirs already.
        return self._flat_optimizer.is_whole and self._ranks.world_size == 1

    @property
    def step_is_complete(self) -> bool:
        """Whether all rows of the optimizer step have been taken."""
        return self._passed == len(self._rows)

    def add_losses(self, losses: Tensor) -> None:
        """Summed losses of rows that it had taken."""
        loss = losses.sum() * self._weight
        self._loss = loss if self._loss is None else self._loss + loss

    @torch.no_grad()
    def take_step(self) -> StepDone:
        """The optimizer step.

        Where the gradient's norm isn't finite, it counts as zero: the weights must stay finite, because a zero times
        infinity in a product over all adapters would reach the others. The trial ends by it in any case.
        """
        assert self._loss is not None
        gradient = self.adapter.gradient
        self._ranks.any()  # a rank whose memory didn't suffice adds nothing to the sum
        self._ranks.sum(gradient, self._loss)
        # A CPU sums one number after the other: in float32 a few parts in a million are lost.
        wide = torch.float64 if gradient.device.type == "cpu" else None
        norm: Tensor = torch.linalg.vector_norm(gradient, dtype=wide).to(gradient.dtype)
        if self._max_grad_norm is not None:
            gradient *= torch.clamp(self._max_grad_norm / (norm + 1e-6), max=1.0)
        gradient.masked_fill_(~torch.isfinite(norm), 0.0)
        rate = self._flat_optimizer.learning_rate
        self._flat_optimizer.step()
        self.steps_done += 1
        figures = AsyncScalars(torch.stack([self._loss, norm]))
        self.done.append(StepDone(figures, rate, self._step_tokens, time.time()))
        return self.done[-1]
