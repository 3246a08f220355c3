"""Paired comparisons: p by hand, intervals that hold the truth, and equal models that cannot be told apart."""

from __future__ import annotations

import json
import math
import random
from math import comb

import numpy as np
import pytest

from trials.errors import DataError
from trials.evaluation.comparison import compare_results
from trials.evaluation.result import Answers, EvalResult, EvalRows
from trials.metrics.paired_tests import (
    LabelComparison,
    ScoreComparison,
    compare_labels,
    compare_losses,
    compare_scores,
    is_clear,
    mcnemar,
)
from trials.metrics.row_losses import LossDifference, RowLosses, compare
from trials.metrics.task_scores import Measure, RowScores


def _labels(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * only_a + [(False, True)] * only_b + [(False, False)] * neither
    random.Random(0).shuffle(pairs)
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 5), (0, 6), (1, 9), (10, 10), (3, 17), (40, 12)])
def test_mcnemars_p_is_that_of_a_fair_coin(only_a: int, only_b: int) -> None:
    throws = only_a + only_b
    tail = sum(comb(throws, k) for k in range(min(only_a, only_b) + 1)) / 2**throws
    assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


def test_labels_are_counted_in_four_cells_and_the_better_one_is_named() -> None:
    found = compare_labels(*_labels(both=80, only_a=3, only_b=15, neither=2))
    cells = (found.both_right, found.only_a_right, found.only_b_right, found.both_wrong)
    assert cells == (80, 3, 15, 2)
    assert found.difference.value == pytest.approx(0.12)
    assert found.difference.low < 0.12 < found.difference.high
    assert found.better == "b"
    a_right, b_right = _labels(both=80, only_a=3, only_b=15, neither=2)
    assert compare_labels(b_right, a_right).better == "a"


def test_five_rows_more_can_be_chance_and_six_cannot() -> None:
    assert compare_labels(*_labels(50, 0, 5, 0)).better is None
    assert compare_labels(*_labels(50, 0, 6, 0)).better == "b"


def test_rows_that_both_get_right_say_nothing() -> None:
    few, many = compare_labels(*_labels(10, 2, 9, 10)), compare_labels(*_labels(1000, 2, 9, 1000))
    assert few.p_value == many.p_value


def test_bonett_and_price_by_hand() -> None:
    found = compare_labels(*_labels(both=43, only_a=6, only_b=16, neither=35)).difference
    a, b = 7 / 102, 17 / 102
    half = 1.959964 * math.sqrt((a + b - (b - a) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((b - a - half, b - a + half), abs=1e-6)


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.1, 0.1), (0.85, 0.02, 0.1, 0.03), (0.96, 0.01, 0.02, 0.01)])
def test_the_interval_of_a_difference_of_accuracies_holds_the_truth(shares: tuple[float, ...]) -> None:
    draws = np.random.default_rng(5).multinomial(160, shares, size=300)
    found = [compare_labels(*_labels(*map(int, cells))).difference for cells in draws]
    truth = shares[2] - shares[1]
    assert 0.92 <= np.mean([interval.low <= truth <= interval.high for interval in found]) <= 1


def test_equal_models_are_told_apart_once_in_twenty_at_most() -> None:
    draws = np.random.default_rng(6).multinomial(200, (0.8, 0.07, 0.07, 0.06), size=400)
    assert np.mean([compare_labels(*_labels(*map(int, cells))).better is not None for cells in draws]) <= 0.06


def test_the_interval_of_a_loss_difference_holds_the_truth() -> None:
    draw, held, called = np.random.default_rng(7), 0, 0
    for _ in range(300):
        counts = draw.integers(5, 80, size=40)
        hard = draw.gamma(2, 0.5, size=40)
        a, b = (counts * (hard + draw.normal(0, 0.2, size=40)) for _ in range(2))
        found = compare_losses(RowLosses(a.tolist(), counts.tolist()), RowLosses(b.tolist(), counts.tolist()))
        held += found.difference.low <= 0 <= found.difference.high
        called += found.better is not None
    assert 0.91 <= held / 300 <= 0.98
    assert held + called == 300


@pytest.mark.parametrize(
    ("rows", "errors", "clear"), [(5, 2.5, False), (5, 2.8, True), (1000, 1.95, False), (1000, 1.98, True)]
)
def test_few_rows_need_more_standard_errors_than_many(rows: int, errors: float, clear: bool) -> None:
    assert is_clear(LossDifference(errors * 0.1, 0.1, rows)) == clear
    assert is_clear(LossDifference(-errors * 0.1, 0.1, rows)) == clear


@pytest.mark.parametrize("rows", [5, 1000])
def test_one_rule_says_what_is_clear(rows: int) -> None:
    """A comparison of evaluations and the choice of a winner never disagree."""
    draw, found = np.random.default_rng(9), []
    for _ in range(100):
        counts = draw.integers(5, 80, size=rows).tolist()
        a, b = (RowLosses(draw.normal(mean, 0.3, size=rows).tolist(), counts) for mean in (1.0, 1.0 + 0.9 / rows**0.5))
        assert is_clear(compare(a, b)) == (compare_losses(a, b).better is not None)
        found.append(is_clear(compare(a, b)))
    assert 10 < sum(found) < 90


def test_the_lower_loss_is_better() -> None:
    a, b = RowLosses([1.0, 2.1, 3.0], [1, 2, 3]), RowLosses([2.0, 4.0, 6.0], [1, 2, 3])
    assert compare_losses(a, b).better == "a"
    assert compare_losses(b, a).better == "b"
    assert compare_losses(a, b).difference.value == pytest.approx(b.mean - a.mean)


def test_scores_are_paired() -> None:
    draw = np.random.default_rng(8)
    hard = draw.uniform(0, 0.8, size=60)
    a, b = RowScores(Measure.ROUGE_L, tuple(hard)), RowScores(Measure.ROUGE_L, tuple(hard + draw.uniform(0, 0.1, 60)))
    found = compare_scores(a, b)
    assert isinstance(found, ScoreComparison)
    assert found.better == "b"
    assert found.difference.high - found.difference.low < 0.02  # the rows' own spread is ten times that
    assert isinstance(
        compare_scores(RowScores(Measure.LABEL, (1.0,)), RowScores(Measure.LABEL, (0.0,))), LabelComparison
    )
    with pytest.raises(ValueError, match="by the same measure"):
        compare_scores(a, RowScores(Measure.LABEL, tuple(hard)))


LOSSES = RowLosses([1, 2], [3, 4])


def _result(name: str, *, rows: str = "x", losses: RowLosses = LOSSES, answers: Answers | None = None) -> EvalResult:
    return EvalResult(EvalRows(name, "dev.jsonl", 2, rows), "nli", losses, answers)


def test_a_model_cannot_be_told_from_itself_by_anything() -> None:
    scores = RowScores(Measure.LABEL, (1.0, 0.0))
    answers = Answers(("x", "y"), (1, 1), (1, 1), (1, 0), scores, 0)
    found = compare_results(_result("a", answers=answers), _result("a", answers=answers)).as_json()
    assert found["loss"]["verdict"] == found["score"]["verdict"] == "cannot be told apart"
    assert found["score"]["p_value"] == 1
    assert json.dumps(found, allow_nan=False)


def test_other_rows_are_refused_and_other_tokens_say_nothing_about_the_loss() -> None:
    with pytest.raises(DataError, match=r"a and b are not judged on the same rows: 2 rows of dev\.jsonl, 2 of"):
        compare_results(_result("a"), _result("b", rows="y"))
    other = _result("b", losses=RowLosses([1, 2], [4, 3]))
    assert compare_results(_result("a"), other).loss is None
    assert compare_results(_result("a"), other).score is None
