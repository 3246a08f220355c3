"""Result of one model's evaluation on one set of rows, row by row, and its JSON file. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from trials.config import DataFormat
from trials.errors import DataError
from trials.formats.answers import parse_label
from trials.formats.conversations import Example
from trials.metrics.classification import LabelReport, label_report
from trials.metrics.intervals import Estimate, around, bootstrap_mean
from trials.metrics.row_losses import RowLosses
from trials.metrics.task_scores import RowScores


@dataclass(frozen=True)
class EvalTask:
    """Settings of an evaluation."""

    data: str
    """Source of the rows, for readers of the result."""
    format: DataFormat
    batch_rows: int
    """Rows in one batch."""
    answers: bool
    """Whether the model also answers, which takes much longer than the loss."""
    max_new_tokens: int | None = None
    """None: about twice the longest reference."""


@dataclass(frozen=True)
class Answers:
    """Answers to every row, beside the references. Lengths are in tokens of the model's tokenizer, without EOS."""

    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    reference_tokens: tuple[int, ...]
    labels: tuple[int, ...] | None
    """True labels; None if the format has none."""
    scores: RowScores
    wordless_references: int
    """Number of references in which ROUGE-L sees no words."""


@dataclass(frozen=True)
class EvalRows:
    """Model and rows of an evaluation; `hash` is equal for equal conversations and labels in the same order."""

    model: str
    data: str
    count: int
    hash: str


@dataclass(frozen=True)
class EvalResult:
    """Result of one model on one set of rows."""

    rows: EvalRows
    format: str
    losses: RowLosses
    answers: Answers | None = None


@dataclass(frozen=True)
class LengthBin:
    """Rows whose references have `shortest` to `longest` tokens: mean score, loss per token, mean answer's tokens."""

    shortest: int
    longest: int
    rows: int
    score: float
    loss: float
    answer_tokens: float


def rows_hash(examples: Iterable[Example]) -> str:
    """Return the SHA-256 of the rows' texts and labels; ids and the model's template don't matter."""
    digest = hashlib.sha256()
    for example in examples:
        content = [[message.parts for message in example.messages], example.label]
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()


def loss_estimate(losses: RowLosses) -> Estimate:
    """Return the loss in nats per token, with the interval of a ratio estimator over rows."""
    return around(losses.mean, losses.standard_error, len(losses.token_counts))


def labels_of(answers: Answers) -> LabelReport | None:
    """Return accuracy and related measures; None if the task has no labels."""
    if answers.labels is None:
        return None
    return label_report(answers.labels, [parse_label(text) for text in answers.texts])


def by_length(result: EvalResult, answers: Answers) -> tuple[LengthBin, ...]:
    """Return the rows in quarters by the length of their reference; fewer parts if many are equally long."""
    lengths = np.asarray(answers.reference_tokens)
    quarter = np.searchsorted(np.quantile(lengths, [0.25, 0.5, 0.75]), lengths)
    sums, counts = np.asarray(result.losses.loss_sums), np.asarray(result.losses.token_counts)
    scores, given = np.asarray(answers.scores.values), np.asarray(answers.tokens)
    return tuple(
        LengthBin(
            shortest=int(lengths[rows].min()),
            longest=int(lengths[rows].max()),
            rows=int(rows.sum()),
            score=float(scores[rows].mean()),
            loss=float(sums[rows].sum() / counts[rows].sum()),
            answer_tokens=float(given[rows].mean()),
        )
        for rows in (quarter == number for number in np.unique(quarter))
    )


def as_json(result: EvalResult) -> dict[str, Any]:
    """Return the values with their intervals, then `judged`: all of it row by row, which `read_result` reads."""
    losses, answers = result.losses, result.answers
    found: dict[str, Any] = {
        "eval_loss": losses.mean,
        "loss": {**asdict(loss_estimate(losses)), "standard_error": losses.standard_error},
    }
    if answers is not None:
        report = labels_of(answers)
        if report is not None:
            found["labels"] = asdict(report)
        else:
            found["rouge_l"] = asdict(bootstrap_mean(answers.scores.values))
            found["by_length"] = [asdict(found) for found in by_length(result, answers)]
    return {**found, "judged": asdict(result)}


def is_written_by_json(text: str) -> bool:
    """Return whether a file's text is what `--json` writes, of one model or of two.

    Raises `ValueError` if it is no JSON.
    """
    found = json.loads(text)
    return isinstance(found, dict) and ("judged" in found or {"a", "b", "comparison"} <= found.keys())


def read_result(path: Path) -> EvalResult:
    """Read a file that `--json` wrote. Raises `DataError` for any other."""
    try:
        return TypeAdapter(EvalResult).validate_python(json.loads(path.read_text(encoding="utf-8"))["judged"])
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}. Check its permissions.") from error
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(
            f"{path} is no file that `python -m trials.evaluate MODEL --data SOURCE --json FILE` wrote. "
            "Give such a file, an adapter or a model."
        ) from error
