"""Judgements as files: written, read back the same, and nothing else is taken for one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from trials.errors import DataError
from trials.evaluation.result import (
    Answers,
    EvalResult,
    EvalRows,
    as_json,
    by_length,
    labels_of,
    loss_estimate,
    read_result,
    rows_hash,
)
from trials.formats.conversations import Example, Message, example
from trials.metrics.row_losses import RowLosses
from trials.metrics.task_scores import Measure, RowScores
from trials.system.files import write_json

LENGTHS = (2, 9, 4, 30, 7, 3, 12, 5)


def _result(*, labelled: bool = False) -> EvalResult:
    rows = len(LENGTHS)
    texts = tuple('{"predicted_label": 1}' if i % 2 else "?" for i in range(rows))
    answers = Answers(
        texts=texts,
        tokens=tuple(range(1, rows + 1)),
        reference_tokens=LENGTHS,
        labels=(0, 1) * (rows // 2) if labelled else None,
        scores=RowScores(Measure.LABEL if labelled else Measure.ROUGE_L, tuple(float(i % 2) for i in range(rows))),
        wordless_references=0,
    )
    losses = RowLosses([0.5 * n for n in LENGTHS], [n + 1 for n in LENGTHS])
    return EvalResult(EvalRows("m", "d.jsonl", rows, "hash"), "nli" if labelled else "instruction", losses, answers)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_file_gives_back_what_was_written(tmp_path: Path, labelled: bool) -> None:
    for result in (_result(labelled=labelled), replace(_result(labelled=labelled), answers=None)):
        write_json(tmp_path / "j.json", as_json(result))
        assert read_result(tmp_path / "j.json") == result


def test_the_file_has_the_figures_first() -> None:
    found = as_json(_result(labelled=True))
    assert found["eval_loss"] == found["loss"]["value"] == pytest.approx(36 / 80)
    assert found["loss"]["low"] < found["eval_loss"] < found["loss"]["high"]
    assert found["labels"]["accuracy"]["value"] == 0.5
    assert found["labels"]["confusion"] == ((0, 0, 4), (0, 4, 0))
    assert "rouge_l" not in found
    text = as_json(_result())
    assert text["rouge_l"]["low"] < text["rouge_l"]["value"] == 0.5 < text["rouge_l"]["high"]
    assert "labels" not in text


def test_the_interval_of_a_loss_is_students_around_the_ratio() -> None:
    losses = _result().losses
    found = loss_estimate(losses)
    assert (found.high - found.low) / 2 == pytest.approx(2.3646 * losses.standard_error, rel=1e-4)  # 7 degrees


def test_rows_stand_in_quarters_by_the_length_of_their_reference() -> None:
    result = _result()
    assert result.answers is not None
    parts = by_length(result, result.answers)
    assert [(part.shortest, part.longest, part.rows) for part in parts] == [
        (2, 3, 2),
        (4, 5, 2),
        (7, 9, 2),
        (12, 30, 2),
    ]
    first = parts[0]  # rows 0 and 5
    assert first.score == 0.5
    assert first.loss == pytest.approx(2.5 / 7)
    assert first.answer_tokens == 3.5
    means = math.fsum(part.score * part.rows for part in parts) / len(LENGTHS)
    assert means == pytest.approx(result.answers.scores.mean)


def test_rows_of_one_length_are_one_part() -> None:
    result = _result()
    assert result.answers is not None
    alike = replace(result.answers, reference_tokens=(5,) * len(LENGTHS))
    assert [(part.shortest, part.longest, part.rows) for part in by_length(result, alike)] == [(5, 5, 8)]


def test_labels_are_those_of_the_answers() -> None:
    answers = _result(labelled=True).answers
    assert answers is not None
    report = labels_of(answers)
    assert report is not None
    assert (report.accuracy.value, report.unparsed.value) == (0.5, 0.5)


def test_the_hash_is_of_what_the_rows_say_in_their_order() -> None:
    rows = [example("a", "p", "c", 1), example("b", "p", "d", 0)]
    assert rows_hash(rows) == rows_hash([replace(row, id="other") for row in rows])
    others = [
        rows[::-1],
        rows[:1],
        [rows[0], replace(rows[1], label=None)],
        [rows[0], example("b", "p", "e", 0)],
        [rows[0], Example("b", (Message("system", "s"), *rows[1].messages), 0)],
    ]
    assert len({rows_hash(rows), *map(rows_hash, others)}) == len(others) + 1


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"judged": 3}', '{"judged": {"model": "x"}}', '{"eval_loss": 0.1, "a": {}}', "\x00"]
)
def test_another_file_is_no_judgement(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"other\.json is no file that `python -m trials\.evaluate"):
        read_result(path)


def test_a_judgement_that_was_tampered_with_is_none(tmp_path: Path) -> None:
    content = json.loads(json.dumps(as_json(_result())))
    content["judged"]["losses"]["token_counts"] = ["many"]
    write_json(tmp_path / "j.json", content)
    with pytest.raises(DataError, match="is no file that"):
        read_result(tmp_path / "j.json")
