"""Scores of answers at some of a trial's evaluations, row by row. Needs no torch.

trials/<id>/score_rows.jsonl  one `ScoreRecord` a line
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from trials.metrics.intervals import Estimate, bootstrap_mean, wilson
from trials.metrics.row_losses import RowLosses
from trials.metrics.task_scores import Measure, RowScores
from trials.system.damage import Lines, read_lines_as
from trials.system.files import append_json_line

SCORINGS_FILE = "score_rows.jsonl"


@dataclass(frozen=True)
class ScoreRecord:
    """Evaluation at which answers were scored: losses of all eval rows, scores of the first of them.

    Both are of the same weights, so that trials can be compared by either, paired by row.
    """

    step: int
    tokens_seen: int
    losses: RowLosses
    scores: RowScores

    @property
    def flaw(self) -> str | None:
        """Reason why a record from a damaged file can't be used; None: it can."""
        return self.losses.flaw if self.scores.values else "it has no scores"


SCORINGS = TypeAdapter(ScoreRecord)


def append_score(folder: Path, scoring: ScoreRecord) -> None:
    """Append a record to a trial's folder."""
    append_json_line(folder / SCORINGS_FILE, asdict(scoring))


def read_scores(folder: Path) -> Lines[ScoreRecord]:
    """Return a trial's records, in order, and what is wrong with lines that hold none."""
    return read_lines_as(folder / SCORINGS_FILE, SCORINGS)


def estimate(scores: RowScores) -> Estimate:
    """Return the mean score with its 95 % interval.

    The interval is Wilson's for the share of right labels, else a bootstrap over rows.
    """
    if scores.measure is Measure.LABEL:
        return wilson(sum(value == 1 for value in scores.values), len(scores.values))
    return bootstrap_mean(scores.values)
