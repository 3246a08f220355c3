"""Rungs: numbers of tokens at which the trials of a search are compared, and their answers scored."""

from __future__ import annotations

from collections.abc import Sequence

from trials.records.trial_dir import EvalPoint


def rung_tokens(full_tokens: int, reduction_factor: int, rungs: int) -> list[int]:
    """Tokens seen at each comparison point, ascending: full / eta^comparison points ... full / eta."""
    return [max(1, round(full_tokens / reduction_factor**k)) for k in range(rungs, 0, -1)]


def loss_at(points: Sequence[EvalPoint], tokens: int) -> float | None:
    """The best loss at the first evaluation that has seen so many tokens; None if the trial didn't get there."""
    return next((point.best_eval_loss for point in points if point.tokens_seen >= tokens), None)
