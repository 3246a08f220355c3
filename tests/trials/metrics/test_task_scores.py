"""One score a row, in the task's own measure."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.cli import ROOT
from trials.errors import DataError
from trials.formats.conversations import Example, example
from trials.metrics.task_scores import Measure, RowScores, has_words, rouge_l, task_score

NLI = [example("a", "p", '{"predicted_label": 1}', 1), example("b", "p", '{"predicted_label": 0}', 0)]


def test_a_label_is_right_or_wrong_and_no_label_is_wrong() -> None:
    found = task_score("nli_cot", ['{"predicted_label": "1"}', "I don't know"], NLI)
    assert found == RowScores(Measure.LABEL, (1.0, 0.0))
    assert found.mean == 0.5
    assert task_score("nli", ['{"predicted_label": 0}', '{"predicted_label": 0}'], NLI).values == (0.0, 1.0)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The CAT, sat!", "the cat sat", 1.0),
        # Longest common subsequence: the, cat, sat: recall 3 of 4, precision 3 of 5.
        ("the black cat quietly sat", "the cat sat down", 2 * 0.75 * 0.6 / (0.75 + 0.6)),
        ("running dogs", "run dog", 1.0),  # stemmed
        ("sat cat the", "the cat sat", 1 / 3),
        ("nothing of it", "the cat sat", 0.0),
        ("", "the cat sat", 0.0),
    ],
)
def test_rouge_l_by_hand(answer: str, reference: str, score: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(score)


@pytest.mark.parametrize("data_format", ["messages", "instruction", "prompt_completion", "title_body"])
def test_text_is_scored_by_rouge_l_of_the_last_answer(data_format: str) -> None:
    rows: list[Example] = [example("a", "p", "the cat sat"), example("b", "p", "a dog")]
    found = task_score(data_format, ["the cat sat", "cats"], rows)
    assert found == RowScores(Measure.ROUGE_L, (1.0, 0.0))


def test_plain_text_has_no_score() -> None:
    with pytest.raises(DataError, match="format 'text' has no question"):
        task_score("text", ["x"], NLI[:1])


def test_an_answer_is_missing() -> None:
    with pytest.raises(ValueError, match="zip"):
        task_score("nli_cot", [""], NLI)


def test_rouge_l_sees_latin_words_only() -> None:
    assert rouge_l("кот сидел", "кот сидел") == 0
    assert not has_words("кот сидел")
    assert has_words("кот 1")


def test_a_search_scores_without_torch() -> None:
    modules = "trials.metrics.task_scores, trials.evaluation.result, trials.metrics.paired_tests"
    script = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
