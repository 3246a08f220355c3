"""Comparison of two models on the same rows: which is better, by how much, or that these rows can't tell. No torch.

Everything is paired by row. Differences are `b - a`, so a better `b` has a lower loss and a higher score. "Better", or
"clear", is at the 5 % level, and only this module decides it. At that level, one in twenty comparisons of equal models
finds a better one, so make few comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import scipy

from trials.metrics.intervals import CONFIDENCE, Estimate, around, bootstrap_mean
from trials.metrics.row_losses import LossDifference, RowLosses, compare
from trials.metrics.task_scores import Measure, RowScores

ALPHA = 0.05
CANNOT_TELL = "cannot be told apart"

Better = Literal["a", "b"] | None
"""None: they cannot be told apart."""


@dataclass(frozen=True)
class LossComparison:
    """Losses in nats per token, with the paired standard error of a ratio estimator over rows.

    `better` is None if the interval contains 0.
    """

    a: float
    b: float
    difference: Estimate
    standard_error: float
    better: Better


@dataclass(frozen=True)
class LabelComparison:
    """Counts of rows by which model was right.

    `better` is None unless McNemar's exact test, which looks at the two middle counts, has p below 0.05. `difference`
    is of accuracies, with the interval of Bonett and Price, which doesn't shrink to a point on few rows. See their
    Adjusted Wald confidence interval for a difference of binomial proportions based on paired data, 2012.
    """

    both_right: int
    only_a_right: int
    only_b_right: int
    both_wrong: int
    p_value: float
    difference: Estimate
    better: Better


@dataclass(frozen=True)
class ScoreComparison:
    """Mean ROUGE-L, 0 to 1, with a percentile bootstrap of the rows' differences.

    `better` is None if the interval contains 0.
    """

    a: float
    b: float
    difference: Estimate
    better: Better


def verdict(better: Better) -> str:
    """Return in words which model is better."""
    return f"{better} is better" if better else CANNOT_TELL


def loss_interval(found: LossDifference) -> Estimate:
    """Return a difference of losses, in nats per token, with its 95 % interval: Student's t over rows."""
    return around(found.difference, found.standard_error, found.rows)


def is_clear(found: LossDifference) -> bool:
    """Return whether one of two models has a clearly lower loss: the interval of their difference excludes 0."""
    return _excludes_zero(loss_interval(found))


def compare_losses(a: RowLosses, b: RowLosses) -> LossComparison:
    """Compare two models by loss.

    Raises ValueError if the rows differ, were tokenised differently, or are fewer than two.
    """
    found = compare(a, b)
    lower: Better = "b" if found.difference < 0 else "a"
    better = lower if is_clear(found) else None
    return LossComparison(a.mean, b.mean, loss_interval(found), found.standard_error, better)


def compare_scores(a: RowScores, b: RowScores) -> LabelComparison | ScoreComparison:
    """Compare two models by task score. Raises ValueError if numbers of rows or measures differ."""
    if a.measure != b.measure or len(a.values) != len(b.values):
        raise ValueError("the two were not scored on the same rows by the same measure")
    if a.measure is Measure.LABEL:
        return compare_labels([score == 1 for score in a.values], [score == 1 for score in b.values])
    interval = bootstrap_mean([y - x for x, y in zip(a.values, b.values, strict=True)])
    higher: Better = "b" if interval.low > 0 else "a"
    return ScoreComparison(a.mean, b.mean, interval, higher if _excludes_zero(interval) else None)


def compare_labels(a_right: Sequence[bool], b_right: Sequence[bool]) -> LabelComparison:
    """Compare two models by whether each is right on every row, in the same order."""
    pairs = list(zip(a_right, b_right, strict=True))
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    p_value = mcnemar(only_a, only_b)
    better: Better = "b" if only_b > only_a else "a"
    return LabelComparison(
        both_right=pairs.count((True, True)),
        only_a_right=only_a,
        only_b_right=only_b,
        both_wrong=pairs.count((False, False)),
        p_value=p_value,
        difference=_difference_of_shares(only_a, only_b, len(pairs)),
        better=better if p_value < ALPHA else None,
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p of the exact test: rows on which one alone is right, as tosses of a fair coin."""
    discordant = only_a + only_b
    return float(scipy.stats.binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0


def _difference_of_shares(only_a: int, only_b: int, rows: int) -> Estimate:
    # Wald's interval with one pseudo-row added on either side.
    share_a, share_b = (only_a + 1) / (rows + 2), (only_b + 1) / (rows + 2)
    middle = share_b - share_a
    error = math.sqrt((share_a + share_b - middle**2) / (rows + 2))
    half = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)) * error
    return Estimate((only_b - only_a) / rows, max(-1.0, middle - half), min(1.0, middle + half))


def _excludes_zero(difference: Estimate) -> bool:
    return not difference.low <= 0 <= difference.high
