"""What answers were worth at some of a trial's evaluations, row by row, as its folder keeps it. Needs no torch.

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
    """One evaluation at which answers were scored: losses of all eval rows, scores of the first of them.

    Both are of the same weights, so that trials can be compared by the one and by the other, paired by row.
    """

    step: int
    tokens_seen: int
    losses: RowLosses
    scores: RowScores

    @property
    def flaw(self) -> str | None:
        """Why it can't be used, where the file was damaged; None: it can."""
        return self.losses.flaw if self.scores.values else "it has no scores"


SCORINGS = TypeAdapter(ScoreRecord)


def append_score(folder: Path, scoring: ScoreRecord) -> None:
    """Adds a scoring to a trial's folder."""
    append_json_line(folder / SCORINGS_FILE, asdict(scoring))


def read_scores(folder: Path) -> Lines[ScoreRecord]:
    """Return a trial's scorings, in order, and what is wrong with lines that are none."""
    return read_lines_as(folder / SCORINGS_FILE, SCORINGS)


def estimate(scores: RowScores) -> Estimate:
    """The mean score with its 95 % interval: Wilson's for the share of right labels, else a bootstrap over rows."""
    if scores.measure is Measure.LABEL:
        return wilson(sum(value == 1 for value in scores.values), len(scores.values))
    return bootstrap_mean(scores.values)
