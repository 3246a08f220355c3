"""Names and notation of task scores, in the report and in the model card."""

from __future__ import annotations

from collections.abc import Mapping

from trials.metrics.intervals import Estimate
from trials.metrics.task_scores import Measure

NAMES: Mapping[Measure, str] = {Measure.LABEL: "accuracy", Measure.ROUGE_L: "ROUGE-L"}


def shown(value: Estimate, measure: Measure, unit: str = " %") -> str:
    """Return a score with its interval as text.

    Shares are in per cent, differences of shares in points, ROUGE-L from 0 to 1.
    """
    if measure is Measure.LABEL:
        return f"{100 * value.value:.1f}{unit} ({100 * value.low:.1f} to {100 * value.high:.1f})"
    return f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f})"
