"""How long a trial is and when it's evaluated, in tokens: the one measure that all configurations share."""

from __future__ import annotations

from dataclasses import dataclass

from trials.config import EvaluationSettings, Hyperparameters, Machine
from trials.data import Split


@dataclass(frozen=True)
class Length:
    """A full trial: its optimizer steps, and the unpadded tokens that they're expected to hold."""

    steps: int
    tokens: int


def full_length(hyperparameters: Hyperparameters, train: Split) -> Length:
    """From epochs or tokens to optimizer steps, by the mean length of a row; at least one step."""
    mean_row_tokens = train.tokens / len(train.rows)
    tokens = full_tokens(hyperparameters, train.tokens)
    steps = max(1, round(tokens / mean_row_tokens / hyperparameters.effective_batch))
    return Length(steps, tokens)


def full_tokens(hyperparameters: Hyperparameters, epoch_tokens: int) -> int:
    """Tokens of a full trial, where one pass over the training rows has `epoch_tokens`."""
    if hyperparameters.train_tokens is not None:
        return hyperparameters.train_tokens
    assert hyperparameters.epochs is not None  # Hyperparameters holds exactly one of the two
    return round(hyperparameters.epochs * epoch_tokens)


def evaluation_tokens(tokens: int, settings: EvaluationSettings) -> list[int]:
    """Tokens seen at which a trial of `tokens` is evaluated, in order; the last is `tokens` itself."""
    return [max(1, round(tokens * k / settings.evaluations)) for k in range(1, settings.evaluations + 1)]


def micro_batch_rows(effective_batch: int, longest_row: int, machine: Machine) -> int:
    """Rows of one forward pass: the largest divisor of the effective batch within the machine's token limit."""
    allowed = max(1, machine.micro_batch_tokens // longest_row)
    return max(rows for rows in range(1, effective_batch + 1) if effective_batch % rows == 0 and rows <= allowed)
