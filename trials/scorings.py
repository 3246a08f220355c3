"""What answers were worth at some of a trial's evaluations, row by row, as its folder keeps it. Needs no torch.

trials/<id>/score_rows.jsonl  one `Scoring` a line
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trials.errors import RunFolderError
from trials.files import append_json_line, read_json_lines
from trials.intervals import Estimate, bootstrap_mean, wilson
from trials.losses import RowLosses
from trials.scores import Measure, RowScores

_FILE = "score_rows.jsonl"


@dataclass(frozen=True)
class Scoring:
    """One evaluation at which answers were scored: losses of all eval rows, scores of the first of them.

    Both are of the same weights, so that trials can be compared by the one and by the other, paired by row.
    """

    step: int
    tokens_seen: int
    losses: RowLosses
    scores: RowScores


_SCORINGS = TypeAdapter(Scoring)


def keep_scoring(folder: Path, scoring: Scoring) -> None:
    """Adds a scoring to a trial's folder."""
    append_json_line(folder / _FILE, asdict(scoring))


def read_scorings(folder: Path) -> tuple[Scoring, ...]:
    """All scorings of a trial, in order; none where no score was asked for. Raises `RunFolderError` if unreadable."""
    try:
        return tuple(_SCORINGS.validate_python(line) for line in read_json_lines(folder / _FILE))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunFolderError(
            f"{folder / _FILE} can't be read: {where}: {first['msg']}. Restore it, or remove it."
        ) from error


def estimate(scores: RowScores) -> Estimate:
    """The mean score with its 95 % interval: Wilson's for the share of right labels, else a bootstrap over rows."""
    if scores.measure is Measure.LABEL:
        return wilson(sum(value == 1 for value in scores.values), len(scores.values))
    return bootstrap_mean(scores.values)
