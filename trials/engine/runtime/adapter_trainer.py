"""Training of one adapter as the step loop drives it: rows of each optimizer step, then the step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trials.data.tokenization import TokenizedRow
from trials.engine.kernels.async_scalars import AsyncScalars
from trials.engine.lora.adapter import Adapter
from trials.engine.model.captured_passes import CapturedPasses
from trials.engine.model.packed_batch import BatchSlice
from trials.engine.optim.flat import FlatOptimizer
from trials.system.distributed import ALONE, ProcessGroup
from trials.training.weight_average import WeightAverage


@dataclass(frozen=True)
class StepDone:
    """Optimizer step that was taken."""

    figures: AsyncScalars
    """Mean loss of the step's learned tokens, in nats, and the gradient's L2 norm before clipping."""
    learning_rate: float
    tokens: int
    ended_at: float
    """Seconds since the epoch when the step was queued; a GPU may be one micro-batch behind."""


class AdapterTrainer:
    """Adapter with its optimizer and the rows of its steps. Belongs to the loop's thread while it trains."""

    def __init__(
        self,
        adapter: Adapter,
        flat_optimizer: FlatOptimizer,
        max_grad_norm: float | None,
        rows_of_step: Callable[[int], Sequence[TokenizedRow]],
        steps_done: int,
        ranks: ProcessGroup = ALONE,
        average: WeightAverage | None = None,
    ) -> None:
        """`rows_of_step` returns the rows of an optimizer step, counted from 0; it's called in order.

        Each of the `ranks` passes its part of them, and all take the same step with the sum of their gradients. The
        weights after every step are added to `average`; None: none is kept.
        """
        self.adapter = adapter
        self.steps_done = steps_done
        self.tokens_served = 0
        """Tokens passed so far on this rank; the trial with the fewest is served first."""
        self.done: list[StepDone] = []
        """Steps that the trial's thread hasn't read yet."""
        self.oom_tokens: list[int] = []
        """Tokens at once in its micro-batches and optimizer steps for which memory ran out."""
        self.passes: CapturedPasses | None = None
        """Its captured passes; they are freed with it."""
        self._flat_optimizer = flat_optimizer
        self._max_grad_norm = max_grad_norm
        self._rows_of_step = rows_of_step
        self._ranks = ranks
        self._average = average
        self._rows: Sequence[TokenizedRow] = ()
        self._first_slot = 0
        self._step_tokens = 0
        self._passed = 0
        self._weight = 0.0
        self._loss: Tensor | None = None

    def begin_step(self) -> None:
        """Begin the next optimizer step with its first row, or begin it again after a failure."""
        rows = self._rows_of_step(self.steps_done)
        lengths = [len(row.input_ids) for row in rows]
        mine, is_counted = self._ranks.shard(lengths)
        self._rows, self._first_slot = rows[mine], mine.start
        self._step_tokens = sum(lengths)
        self._weight = 1 / sum(row.completion_tokens for row in rows) if is_counted else 0.0
        self._passed = 0
        self._loss = None
        self.adapter.gradient.zero_()

    def next_rows(self, token_budget: int) -> BatchSlice | None:
        """Take the next rows that fit into `token_budget` tokens; None if not even one does."""
        end = self._passed
        while end < len(self._rows) and len(self._rows[end].input_ids) <= token_budget:
            token_budget -= len(self._rows[end].input_ids)
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
        """Tokens of the next row."""
        return len(self._rows[self._passed].input_ids)

    @property
    def may_step_again(self) -> bool:
        """Whether an optimizer step that ran out of memory can be begun again."""
        # With several ranks it can't: the others have already taken theirs.
        return self._flat_optimizer.is_whole and self._ranks.world_size == 1

    @property
    def step_is_complete(self) -> bool:
        """Whether all rows of the optimizer step have been taken into micro-batches."""
        return self._passed == len(self._rows)

    def add_losses(self, losses: Tensor) -> None:
        """Add the summed losses [rows] of rows that were taken to the step's loss."""
        loss = losses.sum() * self._weight
        self._loss = loss if self._loss is None else self._loss + loss

    @torch.no_grad()
    def take_step(self) -> StepDone:
        """Take the optimizer step, with the gradients summed over all ranks and clipped.

        A gradient whose norm isn't finite is set to zero. The weights must stay finite: in a product over all adapters,
        zero times infinity would reach the other trials. The trial itself ends by it in any case.
        """
        assert self._loss is not None
        gradient = self.adapter.gradient
        self._ranks.any()  # raises if another rank has failed, for example out of memory: it never joins the sum
        self._ranks.sum(gradient, self._loss)
        # A CPU adds one number after the other: in float32 the norm would be off by a few parts in a million.
        wide = torch.float64 if gradient.device.type == "cpu" else None
        norm: Tensor = torch.linalg.vector_norm(gradient, dtype=wide).to(gradient.dtype)
        if self._max_grad_norm is not None:
            gradient *= torch.clamp(self._max_grad_norm / (norm + 1e-6), max=1.0)
        gradient.masked_fill_(~torch.isfinite(norm), 0.0)
        rate = self._flat_optimizer.learning_rate
        self._flat_optimizer.step()
        self.steps_done += 1
        if self._average is not None:
            self._average.update(self.steps_done)
        figures = AsyncScalars(torch.stack([self._loss, norm]))
        self.done.append(StepDone(figures, rate, self._step_tokens, time.time()))
        return self.done[-1]
