"""The mean of row losses, and the paired comparison of two models."""

from __future__ import annotations

import random
import statistics

import pytest

from trials.metrics.row_losses import LossDifference, RowLosses, compare


def _pair(rows: int = 200, gap: float = 0.5) -> tuple[RowLosses, RowLosses]:
    """Rows of very different difficulty, on which `b` is worse."""
    draw = random.Random(3)
    counts = [draw.randint(5, 80) for _ in range(rows)]
    hard = [draw.gauss(1.5, 0.5) for _ in range(rows)]
    a = [n * h for n, h in zip(counts, hard, strict=True)]
    b = [n * (h + gap + draw.gauss(0, 0.2)) for n, h in zip(counts, hard, strict=True)]
    return RowLosses(a, counts), RowLosses(b, counts)


def test_every_token_counts_the_same() -> None:
    assert RowLosses([10.0, 1.0], [90, 10]).mean == pytest.approx(0.11)


def test_the_difference_is_that_of_the_means_and_signed() -> None:
    a, b = _pair()
    there, back = compare(a, b), compare(b, a)
    assert there.difference == pytest.approx(b.mean - a.mean)
    assert there.difference > 0
    assert (back.difference, back.standard_error) == pytest.approx((-there.difference, there.standard_error))


def test_the_standard_error_is_that_of_a_bootstrap_over_rows() -> None:
    a, b = _pair()
    draw = random.Random(11)
    resampled = []
    for _ in range(2000):
        rows = draw.choices(range(len(a.token_counts)), k=len(a.token_counts))
        tokens = sum(a.token_counts[i] for i in rows)
        resampled.append(sum(b.loss_sums[i] - a.loss_sums[i] for i in rows) / tokens)
    assert compare(a, b).standard_error == pytest.approx(statistics.stdev(resampled), rel=0.1)


def test_one_models_error_is_that_of_a_bootstrap_too() -> None:
    a, _ = _pair()
    draw = random.Random(12)
    resampled = []
    for _ in range(2000):
        rows = draw.choices(range(len(a.token_counts)), k=len(a.token_counts))
        resampled.append(RowLosses([a.loss_sums[i] for i in rows], [a.token_counts[i] for i in rows]).mean)
    assert a.standard_error == pytest.approx(statistics.stdev(resampled), rel=0.1)
    with pytest.raises(ValueError, match="at least two rows"):
        _ = RowLosses([1.0], [3]).standard_error


def test_pairing_sees_what_two_separate_errors_would_hide() -> None:
    a, b = _pair()
    alone = statistics.stdev([s / n for s, n in zip(a.loss_sums, a.token_counts, strict=True)]) / 200**0.5
    assert compare(a, b).standard_error < alone / 2


def test_a_model_is_not_different_from_itself() -> None:
    a, _ = _pair()
    assert compare(a, a) == LossDifference(0.0, 0.0, rows=200)


def test_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="not evaluated on the same rows"):
        compare(RowLosses([1.0, 2.0], [3, 4]), RowLosses([1.0, 2.0], [4, 3]))
    with pytest.raises(ValueError, match="not evaluated on the same rows"):
        compare(RowLosses([1.0, 2.0], [3, 4]), RowLosses([1.0], [3]))
    with pytest.raises(ValueError, match="at least two rows"):
        compare(RowLosses([1.0], [3]), RowLosses([2.0], [3]))
