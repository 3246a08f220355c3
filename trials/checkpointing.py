"""transformers' checkpoints, written whole or not at all, and read back so that nothing shows where a trial stopped.

What its `Trainer` leaves out: the training loss between two log lines. What it does in its own way: it saves the
embeddings of the base beside an adapter on the vocabulary projection, and loads an adapter by way of
`PeftModel.load_adapter`, which sends a model on a CPU through accelerate's offloading.
"""

from __future__ import annotations

import math
from typing import Any

from peft import load_peft_weights, set_peft_model_state_dict
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trials.checkpoints import Checkpoint, CheckpointWriter, LogState


class CheckpointedTrainer(Trainer):  # type: ignore[misc]  # transformers ships without types
    """A `Trainer` whose checkpoints are ours to place. All that is overridden is transformers' own (5.23)."""

    checkpoints: CheckpointWriter | None = None
    """None: nobody asks for checkpoints."""

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Trains on from a checkpoint."""
        self.add_callback(_RestoredLog(self, checkpoint.progress.log))
        self.train(resume_from_checkpoint=str(checkpoint.path))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.unfinished if self.checkpoints else self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert self.checkpoints is not None
        loss_sum = float(self._tr_loss)
        log = LogState(self._globalstep_last_logged, loss_sum if math.isfinite(loss_sum) else None)
        # Not TRL's, which writes a model card into the trial's folder each time.
        self.checkpoints.write(self.state.global_step, log, lambda: Trainer._save_checkpoint(self, model, trial))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = load_peft_weights(resume_from_checkpoint, device="cpu")
        set_peft_model_state_dict(self.model, weights)


class CheckpointTimes(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint every so many steps, after the evaluation where one is due too."""

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Called by the trainer after every optimizer step."""
        if state.global_step % self._every_steps == 0:
            control.should_save = True
        return control


class _RestoredLog(TrainerCallback):  # type: ignore[misc]
    """Puts back the training loss that was summed up and not yet logged."""

    def __init__(self, trainer: CheckpointedTrainer, log: LogState) -> None:
        self._trainer = trainer
        self._log = log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the trainer after it has set the sum to zero."""
        loss_sum = self._log.loss_sum
        self._trainer._tr_loss.fill_(math.nan if loss_sum is None else loss_sum)
        self._trainer._globalstep_last_logged = self._log.step
