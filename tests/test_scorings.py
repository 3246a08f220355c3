"""What a trial's folder keeps of its scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from trials.errors import RunFolderError
from trials.intervals import bootstrap_mean, wilson
from trials.losses import RowLosses
from trials.scores import Measure, RowScores
from trials.scorings import Scoring, estimate, keep_scoring, read_scorings

RIGHT = RowScores(Measure.LABEL, (1.0, 0.0, 1.0))


def _scoring(step: int) -> Scoring:
    return Scoring(step, step * 100, RowLosses([4.0, 6.0, 1.0], [2, 2, 1]), RIGHT)


def test_what_was_kept_is_read_in_order(tmp_path: Path) -> None:
    assert read_scorings(tmp_path) == ()
    for step in (3, 9):
        keep_scoring(tmp_path, _scoring(step))
    assert read_scorings(tmp_path) == (_scoring(3), _scoring(9))


def test_a_line_cut_by_a_crash_is_not_read_and_the_next_one_is(tmp_path: Path) -> None:
    keep_scoring(tmp_path, _scoring(3))
    file = tmp_path / "score_rows.jsonl"
    file.write_text(file.read_text()[:-30])
    assert read_scorings(tmp_path) == ()
    keep_scoring(tmp_path, _scoring(9))
    assert read_scorings(tmp_path) == (_scoring(9),)


def test_what_is_no_scoring_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "score_rows.jsonl").write_text('{"step": 3}\n')
    with pytest.raises(RunFolderError, match=r"score_rows\.jsonl can't be read: tokens_seen: .* Restore it"):
        read_scorings(tmp_path)


def test_shares_have_wilsons_interval_and_other_means_a_bootstraps() -> None:
    assert estimate(RIGHT) == wilson(2, 3)
    values = (0.25, 0.5, 0.9)
    assert estimate(RowScores(Measure.ROUGE_L, values)) == bootstrap_mean(values)
