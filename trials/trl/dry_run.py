"""Dry run of a trial's largest micro-batch under TRL before the first real one; all state is restored."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trials.data.tokenization import IGNORED, TokenizedRow
from trials.evaluation.eval_loss import evaluate_rows

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import Trainer

_COUNTED = ("_metrics", "_total_train_tokens")
"""Attributes in which TRL's trainer (1.16) counts for its log at every forward pass."""


@dataclass(frozen=True)
class LongestRows:
    """The longest rows of a trial."""

    train: Sequence[TokenizedRow]
    """Rows of one micro-batch."""
    evaluated: Sequence[TokenizedRow]
    """Rows of one batch of an evaluation."""

    @property
    def tokens(self) -> int:
        """Unpadded tokens of the micro-batch."""
        return sum(len(row.input_ids) for row in self.train)


def dry_run(trainer: Trainer, model: nn.Module, rows: LongestRows, *, may_halve: bool = True) -> None:
    """Run a forward and backward pass, an optimizer step and an evaluation, and undo all of it, bit by bit.

    No result is exchanged between processes, because memory may suffice on one and not on another. The caller lets them
    agree afterwards. An optimizer that already has state, from a checkpoint, isn't stepped: it needs no further memory.
    `may_halve` is that of `trials.evaluation.eval_loss.evaluate_rows`.
    """
    examples = [{"input_ids": row.input_ids, "labels": row.labels} for row in rows.train]
    learned = sum(label != IGNORED for row in rows.train for label in row.labels[1:])
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    is_fresh = not optimizer.state
    model = trainer.accelerator.unwrap_model(model)  # DDP adds up gradients
    with _undone(trainer, model), _unheard(trainer.accelerator):
        trainer.training_step(model, trainer.data_collator(examples), torch.tensor(learned))
        if is_fresh:
            optimizer.step()
        evaluate_rows(trainer.model, rows.evaluated, len(rows.evaluated), may_halve=may_halve)
    if is_fresh:
        optimizer.state.clear()


@contextmanager
def _unheard(accelerator: Accelerator) -> Iterator[None]:
    """Keep TRL from summing its counts over all processes."""
    accelerator.gather_for_metrics = lambda counted: counted
    try:
        yield
    finally:
        del accelerator.gather_for_metrics


@contextmanager
def _undone(trainer: Trainer, model: nn.Module) -> Iterator[None]:
    """Restore weights, random state and counts, and drop gradients.

    After an error nothing is restored: a trial that runs out of memory here is rebuilt anyway.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter.detach().to("cpu", copy=True) for parameter in learning]
    counted: dict[str, Any] = {
        name: copy.deepcopy(getattr(trainer, name)) for name in _COUNTED if hasattr(trainer, name)
    }
    with torch.random.fork_rng():
        yield
    for name, value in counted.items():
        setattr(trainer, name, value)
    with torch.no_grad():
        for parameter, weight in zip(learning, weights, strict=True):
            parameter.copy_(weight)
            parameter.grad = None
