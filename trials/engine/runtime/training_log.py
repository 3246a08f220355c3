"""Training log of a trial, with the entries that transformers' `Trainer` (5.23) keeps in its state."""

from __future__ import annotations

import math

from torch import Tensor
from transformers import TrainerState

from trials.records.checkpoints import LogState

_NOTHING = LogState(step=0, loss_sum=0.0)


class TrainingLog:
    """Sum of the training loss between two log entries, and the entries in the state's history."""

    def __init__(self, state: TrainerState, pending: LogState = _NOTHING) -> None:
        """`pending` is the loss that a checkpoint had summed up but not logged."""
        self._state = state
        self._last = pending.step
        self._sum: float | Tensor = math.nan if pending.loss_sum is None else pending.loss_sum

    @property
    def pending(self) -> LogState:
        """Loss that is summed up but not logged yet, for a checkpoint."""
        loss_sum = float(self._sum)
        return LogState(self._last, loss_sum if math.isfinite(loss_sum) else None)

    def step_done(
        self, loss: float | Tensor, grad_norm: float | Tensor, learning_rate: float
    ) -> dict[str, float] | None:
        """Add an optimizer step that the state counts already; return the logged entry if one is due, else None.

        `loss` is in nats per token. Tensors are read only when an entry is due, so that not every step waits for a GPU.
        """
        self._sum = self._sum + loss
        steps = self._state.global_step - self._last
        if self._state.global_step % self._state.logging_steps:
            return None
        mean = float(self._sum) / steps
        self._sum, self._last = 0.0, self._state.global_step
        return self.add({"loss": mean, "grad_norm": float(grad_norm), "learning_rate": learning_rate})

    def add(self, values: dict[str, float]) -> dict[str, float]:
        """Log values of the present step, such as those of an evaluation; return them as TensorBoard shows them."""
        state = self._state
        seen = {"epoch": state.epoch, "num_input_tokens_seen": state.num_input_tokens_seen}
        shown = {**values, **seen}
        state.log_history.append({**shown, "step": state.global_step})
        return shown
