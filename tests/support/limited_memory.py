"""Trains in an engine's loop of which the process may have only so much memory; prints what came out as JSON.

The logits of 488 tokens have 41 MiB, and there are two matrices of that size at once.
"""

from __future__ import annotations

import json
import logging
import resource

import psutil
import torch
from transformers import MistralConfig
from transformers.models.auto import AutoModelForCausalLM

from search_spaces.loader import load_recipe
from tests.trials.engine.model.test_decoder import SIZES, rows_of_lengths
from trials.config import Machine
from trials.engine.lora.adapter import Adapter
from trials.engine.memory.oom_history import TrialFootprint
from trials.engine.model.frozen_base import FrozenDecoder, freeze
from trials.engine.optim.flat import FlatOptimizer
from trials.engine.runtime.adapter_trainer import AdapterTrainer
from trials.engine.runtime.step_loop import StepLoop
from trials.metrics.row_losses import RowLosses
from trials.schedule import TrialLength

MIB = 2**20
ROWS = (8, 61)
"""Rows of an optimizer step, and tokens of each."""


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(MistralConfig(**{**SIZES, "vocab_size": 2**15}))
    frozen = freeze(base.requires_grad_(False), torch.float32)
    loop = StepLoop(frozen, Machine(micro_batch_tokens=1024))
    (enough,) = _trained(loop, [_trainer(frozen, *ROWS)])
    evaluated = loop.evaluate(None, rows_of_lengths([ROWS[1]] * 2 * ROWS[0], seed=0))
    warnings = _Warnings()
    logging.getLogger("trials.engine.runtime.micro_batches").addHandler(warnings)
    size = _size()
    for allowed in range(80, 0, -10):  # how much the process had in reserve nobody knows
        _limit(size + allowed * MIB)
        short, too_long = _trained(loop, [_trainer(frozen, *ROWS), _trainer(frozen, 1, 1000)])
        before = len(warnings.messages)
        again, short_evaluated = _again(loop, frozen) if before else (short, evaluated)
        _limit(resource.RLIM_INFINITY)
        if before:
            break
    loop.close()
    assert isinstance(enough, torch.Tensor), enough
    assert isinstance(short, torch.Tensor), short
    assert isinstance(again, torch.Tensor), again
    way = torch.dist(enough, _trainer(frozen, *ROWS).adapter.flat)
    apart = float(torch.dist(short, enough) / way)
    found = {"warnings": warnings.messages[:before], "way": float(way), "apart": apart, "too long": str(too_long)}
    found["later warnings"] = warnings.messages[before:]
    found["apart again"] = float(torch.dist(again, enough) / way)
    found["evaluated"], found["short evaluated"] = evaluated.mean, short_evaluated.mean
    print(json.dumps(found))


def _again(loop: StepLoop, frozen: FrozenDecoder) -> tuple[torch.Tensor | BaseException, RowLosses]:
    """What has been learned about memory isn't forgotten when trials come and go."""
    loop.admit(1, TrialFootprint(0, ROWS[1], 1.0))
    loop.release(1)
    (again,) = _trained(loop, [_trainer(frozen, *ROWS)])
    return again, loop.evaluate(None, rows_of_lengths([ROWS[1]] * 2 * ROWS[0], seed=0))


def _trainer(frozen: FrozenDecoder, rows: int, length: int) -> AdapterTrainer:
    config = load_recipe("demo", ("lora_dropout=0.1",), environ={}).recipe.trial_config({"learning_rate": 1e-3})
    adapter = Adapter(frozen.targets, config.hyperparameters, 1, frozen.final_norm)
    flat_optimizer = FlatOptimizer(adapter, config, TrialLength(20, 20 * rows * length))
    return AdapterTrainer(adapter, flat_optimizer, 1.0, lambda step: rows_of_lengths([length] * rows, seed=step), 0)


def _trained(loop: StepLoop, trainers: list[AdapterTrainer]) -> list[torch.Tensor | BaseException]:
    """The weights of each after three steps, or why there are none."""
    futures = [loop.train(trainer, lambda done, _: done >= 3) for trainer in trainers]
    errors = [future.exception(60) for future in futures]
    return [error or trainer.adapter.flat for error, trainer in zip(errors, trainers, strict=True)]


def _size() -> int:
    """Of the address space, in bytes."""
    return int(psutil.Process().memory_info().vms)


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


if __name__ == "__main__":
    main()
