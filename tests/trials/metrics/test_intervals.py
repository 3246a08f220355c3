"""Intervals: by formula where there is one, and they hold the truth as often as they say."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from trials.metrics.intervals import Estimate, around, bootstrap_mean, bootstrap_table, wilson

Z = statistics.NormalDist().inv_cdf(0.975)


def _wilson_by_formula(hits: int, rows: int) -> tuple[float, float]:
    share = hits / rows
    middle = (share + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    half = Z / (1 + Z**2 / rows) * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    return middle - half, middle + half


@pytest.mark.parametrize(("hits", "rows"), [(0, 12), (12, 12), (1, 2), (89, 100), (1760, 1972)])
def test_wilsons_interval_is_the_formulas(hits: int, rows: int) -> None:
    found = wilson(hits, rows)
    assert found.value == hits / rows
    assert (found.low, found.high) == pytest.approx(_wilson_by_formula(hits, rows), abs=1e-12)


def test_a_share_of_no_rows_could_be_anything() -> None:
    assert wilson(0, 0) == Estimate(0.0, 0.0, 1.0)


def test_a_bootstrapped_mean_is_near_students_interval_and_the_same_twice() -> None:
    values = np.random.default_rng(1).normal(0.3, 0.1, 400).tolist()
    found = bootstrap_mean(values)
    student = around(statistics.mean(values), statistics.stdev(values) / 20, 400)
    assert found.value == pytest.approx(statistics.mean(values))
    assert (found.low, found.high) == pytest.approx((student.low, student.high), abs=0.002)
    assert bootstrap_mean(values) == found


def test_an_interval_needs_two_rows() -> None:
    with pytest.raises(ValueError, match="at least two rows"):
        bootstrap_mean([1.0])


def test_around_is_students() -> None:
    # The tables' t for 9 degrees of freedom.
    assert around(5.0, 1.0, 10) == Estimate(5.0, pytest.approx(5 - 2.262, abs=1e-3), pytest.approx(7.262, abs=1e-3))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_wilson_holds_the_truth_19_times_in_20(share: float) -> None:
    draws = np.random.default_rng(2).binomial(160, share, size=400)
    held = [wilson(int(hits), 160) for hits in draws]
    assert 0.92 <= np.mean([found.low <= share <= found.high for found in held]) <= 0.995


def test_a_bootstrapped_mean_holds_the_truth_19_times_in_20() -> None:
    # Skewed, as ROUGE-L is: many near 0.
    draws = np.random.default_rng(3).beta(1, 4, size=(150, 100))
    held = [bootstrap_mean(row) for row in draws]
    assert 0.9 <= np.mean([found.low <= 0.2 <= found.high for found in held]) <= 0.99


@pytest.mark.parametrize(
    "shares",
    [
        [[0.5, 0.003, 0.002], [0.005, 0.49, 0.0]],
        [[0.3, 0.18, 0.02], [0.1, 0.35, 0.05]],
        [[0.66, 0, 0], [0.33, 0.01, 0]],
    ],
)
def test_a_bootstrapped_table_holds_the_truth_even_where_a_mistake_is_rare(shares: list[list[float]]) -> None:
    def right(tables: np.ndarray) -> np.ndarray:
        return (tables[:, 0, 0] + tables[:, 1, 1])[:, None]

    truth = np.asarray(shares)
    draws = np.random.default_rng(4).multinomial(50, truth.ravel(), size=200).reshape(-1, 2, 3)
    held = [bootstrap_table(counts, right)[0] for counts in draws]
    exact = float(truth[0, 0] + truth[1, 1])
    assert 0.9 <= np.mean([low <= exact <= high for low, high in held]) <= 1
