"""What is said of judgements and comparisons, word by word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from trials.evaluation.comparison import Comparison, compare_results
from trials.evaluation.result import Answers, EvalResult, EvalRows
from trials.evaluation.result_text import comparison_lines, result_lines
from trials.metrics.paired_tests import compare_labels, compare_losses, compare_scores
from trials.metrics.row_losses import RowLosses
from trials.metrics.task_scores import Measure, RowScores

ROWS = 8
RIGHT = '{"predicted_label": 1}'
LOSSES = RowLosses([1.0, 2.0, 3.0, 4.0] * 2, [4] * ROWS)


def _said(renderables: Iterable[Any]) -> list[str]:
    console = Console(markup=False, highlight=False, soft_wrap=True, width=200)
    with console.capture() as capture:
        for renderable in renderables:
            console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


def _result(measure: Measure) -> EvalResult:
    labelled = measure is Measure.LABEL
    answers = Answers(
        texts=(RIGHT,) * 6 + ("?",) * 2,
        tokens=(5,) * ROWS,
        reference_tokens=(3,) * 4 + (9,) * 4,
        labels=(1,) * 4 + (0,) * 4 if labelled else None,
        scores=RowScores(measure, (1.0,) * 4 + (0.0,) * 4),
        wordless_references=0 if labelled else 2,
    )
    return EvalResult(EvalRows("m", "d", ROWS, "x"), "nli", LOSSES, answers)


def test_labels_with_their_intervals_and_a_table_of_counts() -> None:
    said = _said(result_lines(_result(Measure.LABEL)))
    assert said[0].startswith("eval loss 0.6250 nats per token, 8 rows, standard error 0.1056, 95 % 0.3752 to 0.8748")
    assert said[2].split() == ["accuracy", "50.0", "21.5", "to", "78.5"]
    assert [line.split()[:3] for line in said[4:6]] == [["precision", "of", "1"], ["recall", "of", "1"]]
    assert said[10].split()[:3] == ["not", "parsed", "25.0"]
    assert [line.split() for line in said[-3:-1]] == [["0", "0", "2", "2"], ["1", "0", "4", "0"]]
    assert said[-1] == "answering 0 always would be right in 50.0 %"


def test_text_with_a_table_by_length() -> None:
    said = _said(result_lines(_result(Measure.ROUGE_L)))
    assert said[1].startswith("ROUGE-L 0.5000, 95 % 0.1250 to 0.8750")
    assert said[2].strip().startswith("2 references have no Latin letter or digit")
    assert said[-2].split() == ["3", "to", "3", "4", "1.0000", "0.6250", "5.0"]


def test_a_model_and_itself_cannot_be_told_apart() -> None:
    result = _result(Measure.LABEL)
    said = _said(comparison_lines(compare_results(result, result), "A", "B"))
    assert said[0].startswith("loss: A and B cannot be told apart: B - A is 0.0000 (95 % 0.0000 to 0.0000) nats")
    assert said[1].startswith("labels: A and B cannot be told apart: B - A is 0.0 (95 % -27.7 to 27.7) points, McNemar")
    assert said[1].endswith("p = 1")
    assert [line.split() for line in said[3:]] == [["A", "right", "4", "0"], ["A", "wrong", "0", "4"]]


@pytest.mark.parametrize(("names", "better"), [(("A", "B"), "B"), (("base", "adapter"), "adapter")])
def test_the_better_one_is_named_with_how_much(names: tuple[str, str], better: str) -> None:
    lower = RowLosses([loss - 0.4 - 0.01 * i for i, loss in enumerate(LOSSES.loss_sums)], [4] * ROWS)
    labels = compare_labels([False] * 7 + [True], [True] * 8)
    said = _said(comparison_lines(Comparison(ROWS, compare_losses(LOSSES, lower), labels), *names))
    assert said[0].startswith(f"loss: {better} is better by 0.1087 (95 % 0.10")
    assert said[1].startswith(f"labels: {better} is better by 87.5 (95 % ")
    assert said[1].endswith("McNemar's exact p = 0.016")
    back = _said(comparison_lines(Comparison(ROWS, compare_losses(lower, LOSSES), None), *names))
    assert back[0].startswith(f"loss: {names[0]} is better by 0.1087 (95 % 0.10")


def test_rouge_l_is_compared_too() -> None:
    low, high = RowScores(Measure.ROUGE_L, (0.1, 0.2, 0.3)), RowScores(Measure.ROUGE_L, (0.2, 0.3, 0.5))
    said = _said(comparison_lines(Comparison(3, None, compare_scores(high, low)), "A", "B"))
    assert said[0] == "loss: not comparable, A and B cut the same text into different tokens"
    assert said[1] == "ROUGE-L: A is better by 0.1333 (95 % 0.1000 to 0.2000); A 0.3333, B 0.2000"


def test_without_answers_there_is_the_loss_alone() -> None:
    alone = replace(_result(Measure.LABEL), answers=None)
    assert len(_said(result_lines(alone))) == 1
    assert len(_said(comparison_lines(compare_results(alone, alone), "A", "B"))) == 1
