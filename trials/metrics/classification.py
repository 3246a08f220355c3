"""Agreement of predicted labels with true ones: values by scikit-learn, each with a 95 % interval. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trials.formats.conversations import NLI_LABELS
from trials.metrics.intervals import Estimate, bootstrap_table, wilson

UNPARSED = -1
"""Class of an answer that predicts no label: no real class, so it's wrong whatever the truth."""


@dataclass(frozen=True)
class ClassReport:
    """One class. `rows` counts those where it's true, `predicted` those where it was predicted.

    Recall and precision have Wilson intervals given those two counts, F1 the Bayesian bootstrap's. A share of no rows
    is 0, as scikit-learn's `zero_division=0` has it, with an interval from 0 to 1.
    """

    label: int
    rows: int
    predicted: int
    precision: Estimate
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True)
class LabelReport:
    """Report on the labels of one model. Shares from 0 to 1; unparsed answers count as wrong in every one.

    `confusion[i][j]` counts the rows of true label i that were answered j; the last column, those without a label.
    Accuracy and the share of unparsed answers have Wilson intervals, macro-F1 the Bayesian bootstrap's.
    """

    rows: int
    accuracy: Estimate
    macro_f1: Estimate
    unparsed: Estimate
    classes: tuple[ClassReport, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def positive(self) -> ClassReport:
        """The class whose precision and recall are meant where none is named: 1, entailment."""
        return next(found for found in self.classes if found.label == 1)

    @property
    def commonest(self) -> ClassReport:
        """The class that is true most often. Always predicting it is right in that many rows, without learning."""
        return max(self.classes, key=lambda found: found.rows)


def label_report(true: Sequence[int], predicted: Sequence[int | None]) -> LabelReport:
    """Compare predicted labels with true ones, one a row; None for an answer that couldn't be parsed."""
    # Imported here because it takes a second, with pandas, which it imports; many processes have no labels.
    from sklearn import metrics

    said = [UNPARSED if label is None else label for label in predicted]
    labels = list(NLI_LABELS)
    # scikit-learn's table is square: the row of the class that is never true is left out.
    table = metrics.confusion_matrix(true, said, labels=[*labels, UNPARSED])[: len(labels)]
    *class_f1, macro = bootstrap_table(table, _f1_and_macro)
    f1 = metrics.f1_score(true, said, labels=labels, average=None, zero_division=0)
    rows = len(said)
    return LabelReport(
        rows=rows,
        accuracy=wilson(int(metrics.accuracy_score(true, said, normalize=False)), rows),
        macro_f1=_within(metrics.f1_score(true, said, labels=labels, average="macro", zero_division=0), macro),
        unparsed=wilson(int(table[:, -1].sum()), rows),
        classes=_classes(table, f1, class_f1),
        confusion=tuple(tuple(int(count) for count in line) for line in table),
    )


def _classes(
    table: NDArray[np.int64], f1: NDArray[np.float64], f1_intervals: list[tuple[float, float]]
) -> tuple[ClassReport, ...]:
    reports = []
    for i, label in enumerate(NLI_LABELS):
        hits, rows, predicted = int(table[i, i]), int(table[i].sum()), int(table[:, i].sum())
        precision, recall = wilson(hits, predicted), wilson(hits, rows)
        reports.append(ClassReport(label, rows, predicted, precision, recall, _within(f1[i], f1_intervals[i])))
    return tuple(reports)


def _within(value: float, interval: tuple[float, float]) -> Estimate:
    """Return an interval that holds its value: at 0 and 1, and on very few rows, the quantiles of draws may miss it."""
    low, high = interval
    return Estimate(float(value), min(low, float(value)), max(high, float(value)))


def _f1_and_macro(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 of each class, then their mean, for many confusion tables at once."""
    classes = tables.shape[1]
    hits = np.stack([tables[:, i, i] for i in range(classes)], axis=1)
    said_or_true = tables.sum(axis=2) + tables[:, :, :classes].sum(axis=1)
    f1 = 2 * hits / said_or_true
    return np.concatenate([f1, f1.mean(axis=1, keepdims=True)], axis=1)
