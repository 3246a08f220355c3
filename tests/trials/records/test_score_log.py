"""What a trial's folder keeps of its scores."""

from __future__ import annotations

from pathlib import Path

from trials.metrics.intervals import bootstrap_mean, wilson
from trials.metrics.row_losses import RowLosses
from trials.metrics.task_scores import Measure, RowScores
from trials.records.score_log import ScoreRecord, append_score, estimate, read_scores

RIGHT = RowScores(Measure.LABEL, (1.0, 0.0, 1.0))


def _scoring(step: int) -> ScoreRecord:
    return ScoreRecord(step, step * 100, RowLosses([4.0, 6.0, 1.0], [2, 2, 1]), RIGHT)


def test_what_was_kept_is_read_in_order(tmp_path: Path) -> None:
    assert read_scores(tmp_path).values == ()
    for step in (3, 9):
        append_score(tmp_path, _scoring(step))
    assert read_scores(tmp_path).values == (_scoring(3), _scoring(9))


def test_a_line_cut_by_a_crash_is_not_read_and_the_next_one_is(tmp_path: Path) -> None:
    append_score(tmp_path, _scoring(3))
    file = tmp_path / "score_rows.jsonl"
    file.write_text(file.read_text()[:-30])
    assert read_scores(tmp_path).values == ()
    append_score(tmp_path, _scoring(9))
    assert read_scores(tmp_path).values == (_scoring(9),)


def test_a_line_that_is_no_scoring_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "score_rows.jsonl").write_text('{"step": 3}\n')
    append_score(tmp_path, _scoring(9))
    found = read_scores(tmp_path)
    assert found.values == (_scoring(9),)
    assert found.damage == ("line 1 of score_rows.jsonl is left out: tokens_seen: Field required",)


def test_shares_have_wilsons_interval_and_other_means_a_bootstraps() -> None:
    assert estimate(RIGHT) == wilson(2, 3)
    values = (0.25, 0.5, 0.9)
    assert estimate(RowScores(Measure.ROUGE_L, values)) == bootstrap_mean(values)
