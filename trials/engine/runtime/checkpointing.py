"""Checkpoints of a trial in the engine, in the files of transformers' `Trainer` (5.23); either resumes from them.

checkpoint-<step>/adapter_config.json, adapter_model.safetensors  as PEFT writes them
                  optimizer.pt, scheduler.pt                      state dicts
                  adapter_average.safetensors                     the average of the adapter, where one is kept
                  rng_state.pth                                   of the trial's seed: nothing here draws from it
                  trainer_state.json                              steps and tokens done, and all that was logged
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerControl, TrainerState

from trials.config import TrialConfig
from trials.data.split import Split
from trials.engine.optim.build import NamedParameters
from trials.engine.optim.flat import FlatOptimizer
from trials.errors import RunFolderError
from trials.model.adapter_files import WEIGHTS, read_weights, save_adapter, save_weights
from trials.records.checkpoints import AVERAGE, Checkpoint, CheckpointWriter, LogState, average_in
from trials.schedule import TrialLength, logging_steps, micro_batch_rows

_OPTIMIZER, _SCHEDULER, _RANDOM, _STATE = "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"


def first_state(config: TrialConfig, train: Split, length: TrialLength) -> TrainerState:
    """Return the state of a trial before its first step, with all fields that `Trainer` needs in a checkpoint."""
    batch = config.hyperparameters.effective_batch
    steps_per_epoch = math.ceil(len(train) / batch)
    return TrainerState(
        max_steps=length.steps,
        num_train_epochs=math.ceil(length.steps / steps_per_epoch),
        logging_steps=logging_steps(config.hyperparameters, length),
        train_batch_size=micro_batch_rows(batch, train.longest, config.machine),
        stateful_callbacks=[TrainerControl()],
    )


def write_checkpoint(
    writer: CheckpointWriter,
    config: TrialConfig,
    named_parameters: NamedParameters,
    flat_optimizer: FlatOptimizer,
    state: TrainerState,
    log: LogState,
    average: NamedParameters | None = None,
) -> None:
    """Write a checkpoint of step `state.global_step`, atomically; see `CheckpointWriter.write`.

    `average` are the average's parameters; None: none is kept.
    """

    def save() -> None:
        path = writer.unfinished / f"checkpoint-{state.global_step}"
        save_adapter(named_parameters, config, path)
        if average is not None:
            save_weights(average, path / AVERAGE)
        torch.save(_as_under_trl(flat_optimizer.state_dict(), config), path / _OPTIMIZER)
        torch.save(flat_optimizer.scheduler.state_dict(), path / _SCHEDULER)
        torch.save(_random_state(config.seed), path / _RANDOM)
        state.save_to_json(str(path / _STATE))

    writer.write(state.global_step, log, save)


def read_checkpoint(
    checkpoint: Checkpoint,
    named_parameters: NamedParameters,
    flat_optimizer: FlatOptimizer,
    average: NamedParameters | None = None,
) -> TrainerState:
    """Restore parameters, optimizer and schedule from a checkpoint of either backend; return the trainer state.

    `average` are the average's parameters, which are restored too; None: none is kept. The training loss that wasn't
    logged yet is in `checkpoint.progress.log`.

    Raises:
        RunFolderError: If the checkpoint is of another adapter, or has no average of it.
    """
    path = checkpoint.path
    _load_weights(path / WEIGHTS, named_parameters)
    if average is not None:
        _load_weights(average_in(path), average)
    saved = torch.load(path / _OPTIMIZER, map_location="cpu", weights_only=True)
    _keep_kernels(saved["param_groups"], flat_optimizer.param_groups)
    flat_optimizer.load_state_dict(saved)
    flat_optimizer.scheduler.load_state_dict(torch.load(path / _SCHEDULER, weights_only=True))
    return TrainerState.load_from_json(str(path / _STATE))


def _load_weights(file: Path, named_parameters: NamedParameters) -> None:
    weights = read_weights(file)
    expected = {name: parameter.shape for name, parameter in named_parameters}
    if {name: weight.shape for name, weight in weights.items()} != expected:
        raise RunFolderError(
            f"{file.parent} is a checkpoint of another adapter: its modules or rank aren't the trial's."
        )
    with torch.no_grad():
        for name, parameter in named_parameters:
            parameter.copy_(weights[name])


def _as_under_trl(state: dict[str, Any], config: TrialConfig) -> dict[str, Any]:
    """Return a state dict with which TRL's trainer resumes with the kernels that the optimizer's name asks for."""
    fused = True if config.hyperparameters.optimizer == "adamw_torch_fused" else None
    groups = [{**group, "fused": fused} if "fused" in group else group for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def _keep_kernels(saved: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> None:
    """Replace the checkpoint's choice of kernels by that of this machine's optimizer."""
    for theirs, mine in zip(saved, ours, strict=True):
        theirs.update({name: mine[name] for name in ("fused", "foreach") if name in mine})


def _random_state(seed: int) -> dict[str, Any]:
    """Return the generator states that `Trainer` restores, as after `set_seed`; many trials share the process's own."""
    state: dict[str, Any] = {
        "python": random.Random(seed).getstate(),
        "numpy": np.random.RandomState(seed).get_state(),
        "cpu": torch.Generator().manual_seed(seed).get_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.Generator("cuda").manual_seed(seed).get_state()
    return state
