"""Length of the recipe repeated for the whole wall clock, planned from a run of the recipe as it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.planning.trial_length import shortened
from trials.config import LENGTHS, EvaluationSettings, Hyperparameters
from trials.records.trial_dir import TrialRecord

SPARE_SHARE = 0.05
"""Share of the wall clock that is left free, as a trial that is cut off has not finished its schedule."""


@dataclass(frozen=True)
class Speed:
    """Measured speed of a single trial, from the start of its command."""

    start_seconds: float
    """Everything but training and evaluations: imports, loading, the end."""
    tokens_per_second: float
    evaluation_seconds: float
    """One evaluation."""
    evaluations: float
    """Evaluations that the measured trial would have had at its full length."""


def measured_speed(record: TrialRecord, wall_seconds: float, full_tokens: int) -> Speed | None:
    """Return the speed of a trial whose command took `wall_seconds`; None if it was never evaluated after a step."""
    points = [point for point in record.points if point.tokens_per_second]
    if not points:
        return None
    last = points[-1]
    assert last.tokens_per_second is not None
    training = last.tokens_seen / last.tokens_per_second
    evaluating = max(0.0, last.seconds - training) / len(points)
    start = max(0.0, wall_seconds - last.seconds)
    count = len(points) * full_tokens / last.tokens_seen
    return Speed(start, last.tokens_per_second, evaluating, count)


def tokens_that_fit(speed: Speed, budget_seconds: float, full_tokens: int, settings: EvaluationSettings) -> int:
    """Return the training tokens that fit in the wall clock, evaluations included; at least one."""
    free = budget_seconds * (1 - SPARE_SHARE) - speed.start_seconds
    per_token = 1 / speed.tokens_per_second
    if settings.every_rows is None:  # as many evaluations in a longer trial
        free -= speed.evaluation_seconds * speed.evaluations
    else:
        per_token += speed.evaluation_seconds * speed.evaluations / full_tokens
    return max(1, int(free / per_token))


def length_setting(hyperparameters: Hyperparameters, factor: float) -> dict[str, Any]:
    """Return the one setting that makes a trial `factor` times as long as these hyperparameters say."""
    return shortened(hyperparameters, factor).model_dump(include=set(LENGTHS), exclude_none=True)
