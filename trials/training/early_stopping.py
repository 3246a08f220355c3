"""Rules that end a trial by its own evaluations. Pure: `trials.training.evaluation_loop` acts on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trials.config import EvaluationSettings
from trials.records.trial_dir import Ending, EvalPoint
from trials.state import TrialState


def divergence(loss: float, base_loss: float, factor: float) -> Ending | None:
    """Return an ending if the loss is not finite, or above `factor` times the base model's; else None."""
    if not math.isfinite(loss):
        return Ending(TrialState.DIVERGED, f"the loss is {loss}")
    if loss > factor * base_loss:
        reason = f"eval loss {loss:.4f} is above {factor:g} times the base model's {base_loss:.4f}"
        return Ending(TrialState.DIVERGED, reason)
    return None


def patience_exhausted(points: Sequence[EvalPoint], settings: EvaluationSettings) -> Ending | None:
    """Return an ending if the last `patience` evaluations didn't improve on the best before them; else None."""
    if len(points) <= settings.patience:
        return None
    before, recent = points[: -settings.patience], points[-settings.patience :]
    best = min(point.eval_loss for point in before)
    if min(point.eval_loss for point in recent) < best - settings.min_improvement:
        return None
    return Ending(TrialState.EARLY_STOPPED, f"{settings.patience} evaluations without improving on {best:.4f}")
