"""Length and evaluation points of a trial, in tokens, the one measure that all configurations share; its schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trials.config import EvaluationSettings, Hyperparameters, Machine

LOGGED_STEPS = 200
"""Approximate number of training losses that are logged in a full trial; of an open-ended one in an epoch."""
_MOST_UNLOGGED = 10
"""Most optimizer steps of an open-ended trial from one logged training loss to the next: it may be a short one."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows: how many there are, and their unpadded tokens."""

    rows: int
    tokens: int

    @property
    def row_tokens(self) -> float:
        """Tokens of a mean row."""
        return self.tokens / self.rows


@dataclass(frozen=True)
class TrialLength:
    """A full trial: its optimizer steps, and the unpadded tokens that they're expected to hold."""

    steps: int
    tokens: int
    epoch_steps: int | None = None
    """Optimizer steps of one pass over the training rows; None: as many as the trial has."""


def full_length(hyperparameters: Hyperparameters, epoch: Epoch) -> TrialLength:
    """Convert epochs, tokens or rows to optimizer steps, by the mean length of a row; at least one step."""
    tokens = full_tokens(hyperparameters, epoch)
    steps = max(1, round(tokens / epoch.row_tokens / hyperparameters.effective_batch))
    return TrialLength(steps, tokens, math.ceil(epoch.rows / hyperparameters.effective_batch))


def full_tokens(hyperparameters: Hyperparameters, epoch: Epoch) -> int:
    """Return the tokens of a full trial."""
    if hyperparameters.train_tokens is not None:
        return hyperparameters.train_tokens
    if hyperparameters.rows_seen is not None:
        return max(1, round(hyperparameters.rows_seen * epoch.row_tokens))
    assert hyperparameters.epochs is not None  # Hyperparameters holds exactly one of the three
    return max(1, round(hyperparameters.epochs * epoch.tokens))


def evaluation_tokens(tokens: int, settings: EvaluationSettings, epoch: Epoch) -> list[int]:
    """Return the tokens seen at which a trial of `tokens` is evaluated, in order; the last is `tokens` itself."""
    if settings.every_rows is None:
        return [max(1, round(tokens * k / settings.evaluations)) for k in range(1, settings.evaluations + 1)]
    every = max(1, round(settings.every_rows * epoch.row_tokens))
    return [*range(every, tokens, every), tokens]


class TokenTriggers:
    """Numbers of tokens that a trial passes one after the other, each reported once."""

    def __init__(self, tokens: Sequence[int], tokens_seen: int = 0) -> None:
        """Treat the numbers up to `tokens_seen` as passed already."""
        self._ahead = sorted(evaluation_point for evaluation_point in tokens if evaluation_point > tokens_seen)

    def is_due(self, tokens_seen: int) -> bool:
        """Return whether a number would be passed with so many tokens seen."""
        return bool(self._ahead) and self._ahead[0] <= tokens_seen

    def advance(self, tokens_seen: int) -> bool:
        """Pass all numbers up to `tokens_seen`; return whether there was at least one."""
        are_passed = self.is_due(tokens_seen)
        self._ahead = [evaluation_point for evaluation_point in self._ahead if evaluation_point > tokens_seen]
        return are_passed


def checkpoint_steps(effective_batch: int, machine: Machine) -> int | None:
    """Return the optimizer steps from one checkpoint to the next; None: no checkpoints are written."""
    if machine.checkpoint_every_rows is None:
        return None
    return max(1, round(machine.checkpoint_every_rows / effective_batch))


def logging_steps(hyperparameters: Hyperparameters, length: TrialLength) -> int:
    """Return the optimizer steps from one logged training loss to the next."""
    steps = max(1, _scheduled_steps(hyperparameters, length) // LOGGED_STEPS)
    return min(steps, _MOST_UNLOGGED) if hyperparameters.is_open_ended else steps


def warmup_steps(hyperparameters: Hyperparameters, length: TrialLength) -> int:
    """Return the optimizer steps in which the learning rate rises to its peak.

    Those of an open-ended trial are a share of an epoch, because it has no length to share. Over many rows an epoch may
    be longer than any trial, so they are at most as many as those in which the rate falls noticeably afterwards.
    """
    steps = math.ceil(_scheduled_steps(hyperparameters, length) * hyperparameters.warmup_fraction)
    return min(steps, hyperparameters.inverse_sqrt_steps) if hyperparameters.is_open_ended else steps


def schedule_arguments(hyperparameters: Hyperparameters) -> dict[str, int] | None:
    """Return what transformers' schedule of that name is given beside the warm-up; None: nothing.

    A rate that falls with the inverse square root needs no end (arXiv 2106.04560, 2405.18392).
    """
    return {"timescale": hyperparameters.inverse_sqrt_steps} if hyperparameters.is_open_ended else None


def _scheduled_steps(hyperparameters: Hyperparameters, length: TrialLength) -> int:
    """Return the optimizer steps of which warm-up and log have their shares."""
    if hyperparameters.is_open_ended and length.epoch_steps is not None:
        return length.epoch_steps
    return length.steps


def micro_batch_rows(effective_batch: int, longest_row: int, machine: Machine) -> int:
    """Return the rows of one forward pass: the largest divisor of the effective batch within the machine's limits."""
    allowed = max(1, machine.micro_batch_tokens // longest_row)
    if machine.micro_batch_rows is not None:
        allowed = min(allowed, machine.micro_batch_rows)
    return largest_divisor(effective_batch, allowed)


def largest_divisor(batch: int, most: int) -> int:
    """Return the largest divisor of a batch that is at most `most`, which is at least 1."""
    return max(rows for rows in range(1, batch + 1) if batch % rows == 0 and rows <= most)
