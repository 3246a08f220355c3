"""What a trial logs as it trains, entry by entry as transformers' `Trainer` (5.23) has it in its state."""

from __future__ import annotations

import math

from torch import Tensor
from transformers import TrainerState

from trials.records.checkpoints import LogState

_NOTHING = LogState(step=0, loss_sum=0.0)


class TrainingLog:
    """Sums up the training loss between two log lines, and keeps what is logged in the state's history."""

    def __init__(self, state: TrainerState, pending: LogState = _NOTHING) -> None:
        """`pending` is what a checkpoint had summed up and not logged."""
        self._state = state
        self._last = pending.step
        self._sum: float | Tensor = math.nan if pending.loss_sum is None else pending.loss_sum

    @property
    def pending(self) -> LogState:
        """What is summed up and not yet logged, for a checkpoint."""
        loss_sum = float(self._sum)
        return LogState(self._last, loss_sum if math.isfinite(loss_sum) else None)

    def step_done(
        self, loss: float | Tensor, grad_norm: float | Tensor, learning_rate: float
    ) -> dict[str, float] | None:
        """After a step that the state counts already: its loss, in nats per token, and the rate that it was taken at.

        Gives what is to be shown, if an entry is due. Tensors are read only then: nobody waits for a GPU at every step.
        """
        self._sum = self._sum + loss
        steps = self._state.global_step - self._last
        if self._state.global_step % self._state.logging_steps:
            return None
        mean = float(self._sum) / steps
        self._sum, self._last = 0.0, self._state.global_step
        return self.add({"loss": mean, "grad_norm": float(grad_norm), "learning_rate": learning_rate})

    def add(self, values: dict[str, float]) -> dict[str, float]:
        """Logs figures of the present step, such as those of an evaluation; gives what TensorBoard is to show of it."""
        state = self._state
        seen = {"epoch": state.epoch, "num_input_tokens_seen": state.num_input_tokens_seen}
        shown = {**values, **seen}
        state.log_history.append({**shown, "step": state.global_step})
        return shown
