"""One score a row in the task's own measure: whether the label is right, or how much of the reference is in the answer.

Needs no torch: a search scores the answers that its trials gave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from trials.errors import DataError
from trials.formats.answers import parse_label
from trials.formats.conversations import LABELLED, Example


class Measure(StrEnum):
    """Meaning of a row's score."""

    LABEL = "accuracy"
    """1 if the predicted label is the true one, else 0."""
    ROUGE_L = "rouge_l"
    """F1 of the longest common subsequence of stemmed words, from 0 to 1."""


@dataclass(frozen=True)
class RowScores:
    """One score a row, in file order; more is better."""

    measure: Measure
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over rows: every row counts the same."""
        return math.fsum(self.values) / len(self.values)


def task_score(data_format: str, answers: Sequence[str], examples: Sequence[Example]) -> RowScores:
    """Score answers to the examples of a format, in their order.

    NLI formats are scored by the label (an answer without one is wrong), text tasks by ROUGE-L. Raises `DataError` for
    plain text, which has no question to answer.
    """
    if data_format in LABELLED:
        right = [parse_label(answer) == example.label for answer, example in zip(answers, examples, strict=True)]
        return RowScores(Measure.LABEL, tuple(map(float, right)))
    refuse_plain_text(data_format)
    pairs = zip(answers, examples, strict=True)
    return RowScores(Measure.ROUGE_L, tuple(rouge_l(answer, example.completion) for answer, example in pairs))


def refuse_plain_text(data_format: str) -> None:
    """Raise `DataError` for the format without questions."""
    if data_format == "text":
        raise DataError("format 'text' has no question that could be answered, so it's judged by its loss alone.")


def rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L F1 by Google's rouge-score, with its stemmer.

    Its words are of Latin letters and digits: a reference in another script has none, and scores 0.
    """
    return float(_scorer().score(reference, answer)["rougeL"].fmeasure)


def has_words(reference: str) -> bool:
    """Return whether ROUGE-L finds any word in a reference."""
    return any(letter.isascii() and letter.isalnum() for letter in reference)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
