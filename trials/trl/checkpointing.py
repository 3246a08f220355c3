"""Checkpoints of transformers' `Trainer`, written whole or not at all, and resumed as if never stopped.

This module changes the following of `Trainer`:

- It leaves out the training loss between two log lines.
- It saves the base's embeddings beside an adapter on the vocabulary projection.
- It loads an adapter through `PeftModel.load_adapter`, which sends a model on a CPU through accelerate's offloading.
- With several processes it leaves files that a single process doesn't know. Here the first rank writes for all, in the
  files of a single process.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trials.records.checkpoints import Checkpoint, CheckpointWriter, LogState
from trials.system.distributed import ALONE, ProcessGroup
from trials.training.weight_average import WeightAverage
from trials.trl.averaging import AverageCallback, load_average, save_average
from trials.trl.rng_state import random_state, random_state_file, restore_random_state


class CheckpointedTrainer(Trainer):  # type: ignore[misc]  # transformers ships without types
    """`Trainer` whose checkpoints a `CheckpointWriter` places. All overridden methods are transformers' (5.23)."""

    checkpoints: CheckpointWriter | None = None
    """None: no checkpoints are written."""
    ranks: ProcessGroup = ALONE
    """Processes that train the trial."""
    average: WeightAverage | None = None
    """Average of the adapter, which goes into checkpoints; None: none is kept."""
    _random_states: list[dict[str, Any]]

    def keep_average(self, average: WeightAverage | None) -> None:
        """Update an average after every step, and have it in checkpoints; None: keep none."""
        self.average = average
        if average is not None:
            self.add_callback(AverageCallback(average))

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Resume training from a checkpoint."""
        self.add_callback(_RestoredLog(self, checkpoint.progress.log))
        self.train(resume_from_checkpoint=str(checkpoint.path))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.unfinished if self.checkpoints else self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoints = self.checkpoints
        assert checkpoints is not None
        loss_sum = self._loss_sum()
        log = LogState(self._globalstep_last_logged, loss_sum if math.isfinite(loss_sum) else None)
        if self.ranks.world_size > 1:
            self._random_states = self.ranks.all_gather(random_state)
        # Not TRL's, which writes a model card into the trial's folder each time.
        write = partial(
            checkpoints.write, self.state.global_step, log, lambda: Trainer._save_checkpoint(self, model, trial)
        )
        self.ranks.all_gather(write)

    def _loss_sum(self) -> float:
        """Return the training loss that is summed up and not yet logged, over the rows of all ranks."""
        loss = self._tr_loss.clone()
        self.ranks.sum(loss)
        return float(loss) / self.ranks.world_size

    def store_flos(self) -> None:
        """Count this process's own operations only: the first rank writes checkpoints while the others wait."""
        self.state.total_flos += self.current_flos
        self.current_flos: float = 0

    def _save_rng_state(self, output_dir: str) -> None:
        if self.ranks.world_size == 1:
            super()._save_rng_state(output_dir)
            return
        for rank, state in enumerate(self._random_states):
            torch.save(state, Path(output_dir) / random_state_file(rank))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.ranks.world_size == 1 or checkpoint is None:
            super()._load_rng_state(checkpoint)
        else:
            restore_random_state(Path(checkpoint) / random_state_file(self.ranks.rank))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)
        if self.average is not None and output_dir is not None:
            save_average(self.average, self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = load_peft_weights(resume_from_checkpoint, device="cpu")
        set_peft_model_state_dict(self.model, weights)
        if self.average is not None:
            load_average(self.average, self.model, Path(resume_from_checkpoint))


class CheckpointTimes(TrainerCallback):  # type: ignore[misc]
    """Callback that asks for a checkpoint every so many steps, after the evaluation if one is due too."""

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint if one is due; the trainer calls this after every optimizer step."""
        if state.global_step % self._every_steps == 0:
            control.should_save = True
        return control


class _RestoredLog(TrainerCallback):  # type: ignore[misc]
    """Callback that restores the training loss that was summed up and not yet logged."""

    def __init__(self, trainer: CheckpointedTrainer, log: LogState) -> None:
        self._trainer = trainer
        self._log = log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the sum; the trainer calls this after it has set the sum to zero."""
        loss_sum = self._log.loss_sum
        self._trainer._tr_loss.fill_(math.nan if loss_sum is None else loss_sum)
        self._trainer._globalstep_last_logged = self._log.step
