"""Comparison of the evaluations of two models, which must be on the same rows. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trials.errors import DataError
from trials.evaluation.result import EvalResult, EvalRows
from trials.metrics.paired_tests import (
    LabelComparison,
    LossComparison,
    ScoreComparison,
    compare_losses,
    compare_scores,
    verdict,
)


@dataclass(frozen=True)
class Comparison:
    """Comparison of two evaluations; `loss` is None if their tokens differ, `score` is None without answers."""

    rows: int
    loss: LossComparison | None
    score: LabelComparison | ScoreComparison | None

    def as_json(self) -> dict[str, Any]:
        """Return all values, and the verdict on each in words."""
        parts = {"loss": self.loss, "score": self.score}
        found = {name: {**asdict(part), "verdict": verdict(part.better)} for name, part in parts.items() if part}
        return {"rows": self.rows, **found}


def compare_results(a: EvalResult, b: EvalResult) -> Comparison:
    """Compare two evaluations. Raises `DataError` if they are on different rows."""
    refuse_other_rows(a.rows, b.rows)
    # Another tokenizer splits the same answer into other tokens, which makes the loss per token incomparable.
    same_tokens = list(a.losses.token_counts) == list(b.losses.token_counts)
    return Comparison(
        rows=a.rows.count,
        loss=compare_losses(a.losses, b.losses) if same_tokens else None,
        score=compare_scores(a.answers.scores, b.answers.scores) if a.answers and b.answers else None,
    )


def refuse_other_rows(a: EvalRows, b: EvalRows) -> None:
    """Raise `DataError` if two models are not, or would not be, evaluated on the same rows."""
    if a.hash != b.hash:
        raise DataError(
            f"{a.model} and {b.model} are not judged on the same rows: {a.count} rows of {a.data}, {b.count} of "
            f"{b.data}, which differ in number, order or text. "
            "Judge both with the same --data, --format, --rows and --max-length-tokens."
        )
