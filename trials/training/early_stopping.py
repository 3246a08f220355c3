"""Rules that end a trial by its own evaluations. Pure: `trials.training.evaluation_loop` acts on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trials.config import EvaluationSettings, Hyperparameters
from trials.records.trial_dir import Ending, EvalPoint
from trials.state import TrialState

_STEADY = ("constant", "constant_with_warmup", "inverse_sqrt")
"""Schedules under which the learning rate doesn't fall to an end."""


def divergence(loss: float, base_loss: float, factor: float) -> Ending | None:
    """Return an ending if the loss is not finite, or above `factor` times the base model's; else None."""
    if not math.isfinite(loss):
        return Ending(TrialState.DIVERGED, f"the loss is {loss}")
    if loss > factor * base_loss:
        reason = f"eval loss {loss:.4f} is above {factor:g} times the base model's {base_loss:.4f}"
        return Ending(TrialState.DIVERGED, reason)
    return None


def patience_begins(hyperparameters: Hyperparameters, last_step: int) -> int:
    """Return the first optimizer step at which a missing improvement counts.

    Where the learning rate falls to an end, most progress comes late (arXiv 2408.11029). A trial without improvement
    while its rate is high may have most of it still to come, so its second half counts only.
    """
    return 0 if hyperparameters.scheduler in _STEADY else last_step // 2


def patience_exhausted(points: Sequence[EvalPoint], settings: EvaluationSettings, first_step: int = 0) -> Ending | None:
    """Return an ending if the last `patience` evaluations didn't improve on the best before them; else None.

    `first_step`: the first optimizer step whose evaluation counts, see `patience_begins`.
    """
    if settings.patience is None or len(points) <= settings.patience:
        return None
    before, recent = points[: -settings.patience], points[-settings.patience :]
    if recent[0].step < first_step:
        return None
    best = min(point.eval_loss for point in before)
    if min(point.eval_loss for point in recent) < best - settings.min_improvement:
        return None
    return Ending(TrialState.EARLY_STOPPED, f"{settings.patience} evaluations without improving on {best:.4f}")
