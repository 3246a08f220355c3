"""Rungs: token counts at which the trials of a search are compared and their answers scored."""

from __future__ import annotations

from collections.abc import Sequence

from trials.records.trial_dir import EvalPoint


def rung_tokens(full_tokens: int, reduction_factor: int, rungs: int) -> list[int]:
    """Return the tokens seen at each rung, ascending: `full_tokens / reduction_factor**k` for k from `rungs` to 1."""
    return [max(1, round(full_tokens / reduction_factor**k)) for k in range(rungs, 0, -1)]


def loss_at(points: Sequence[EvalPoint], tokens: int) -> float | None:
    """Return the best loss up to the first evaluation with at least `tokens` seen; None if there is none."""
    return next((point.best_eval_loss for point in points if point.tokens_seen >= tokens), None)
