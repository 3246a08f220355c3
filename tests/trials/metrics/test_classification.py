"""Measures of labels: by hand, and for everything random they obey what must hold."""

from __future__ import annotations

import random

import pytest

from trials.metrics.classification import LabelReport, label_report
from trials.metrics.intervals import Estimate


def _random_case(seed: int) -> tuple[list[int], list[int | None]]:
    draw = random.Random(seed)
    rows = draw.randint(2, 60)
    choices: list[int | None] = [0, 1, None]
    return [draw.randint(0, 1) for _ in range(rows)], [draw.choice(choices) for _ in range(rows)]


def _estimates(report: LabelReport) -> list[Estimate]:
    of_classes = [estimate for found in report.classes for estimate in (found.precision, found.recall, found.f1)]
    return [report.accuracy, report.macro_f1, report.unparsed, *of_classes]


def test_a_case_by_hand() -> None:
    true = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    said = [1, 1, 0, None, 0, 0, 0, 1, None, None]
    report = label_report(true, said)
    assert report.confusion == ((3, 1, 2), (1, 2, 1))
    assert report.accuracy.value == 0.5
    assert report.unparsed.value == 0.3
    zero, one = report.classes
    assert report.positive is one
    assert (one.rows, one.predicted, zero.rows, zero.predicted) == (4, 3, 6, 4)
    # What could not be parsed isn't said of any class, so precision is of what was said; but recall misses it.
    assert (one.precision.value, one.recall.value) == (2 / 3, 0.5)
    assert (zero.precision.value, zero.recall.value) == (0.75, 0.5)
    assert (one.f1.value, zero.f1.value) == pytest.approx((4 / 7, 0.6))
    assert report.macro_f1.value == pytest.approx((4 / 7 + 0.6) / 2)


def test_unparsed_counts_as_wrong() -> None:
    true = [0, 1] * 10
    parsed, unparsed = label_report(true, list(true)), label_report(true, [*true[:10], *[None] * 10])
    wrong = label_report(true, [*true[:10], *(1 - label for label in true[10:])])
    assert parsed.accuracy.value == parsed.macro_f1.value == 1
    assert unparsed.accuracy == wrong.accuracy
    assert unparsed.accuracy.value == 0.5
    assert all(found.recall.value == 0.5 for found in unparsed.classes)
    assert unparsed.macro_f1.value < 1


def test_nothing_parsed_is_nothing_right() -> None:
    report = label_report([0, 1, 1], [None, None, None])
    assert report.confusion == ((0, 0, 1), (0, 0, 2))
    assert (report.accuracy.value, report.macro_f1.value, report.unparsed.value) == (0, 0, 1)
    assert report.positive.precision == Estimate(0.0, 0.0, 1.0)  # of nothing said, nothing is known


@pytest.mark.parametrize("seed", range(40))
def test_every_figure_is_within_its_interval_and_a_share(seed: int) -> None:
    for estimate in _estimates(label_report(*_random_case(seed))):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize("seed", range(15))
def test_order_of_rows_and_names_of_classes_change_nothing(seed: int) -> None:
    true, said = _random_case(seed)
    report = label_report(true, said)
    assert report == label_report(true[::-1], said[::-1])
    swapped = label_report([1 - label for label in true], [None if label is None else 1 - label for label in said])
    assert swapped.accuracy == report.accuracy
    assert swapped.macro_f1.value == pytest.approx(report.macro_f1.value)
    assert swapped.classes[0].recall == report.classes[1].recall
    assert swapped.classes[1].precision == report.classes[0].precision


@pytest.mark.parametrize("seed", range(15))
def test_the_table_counts_every_row_once(seed: int) -> None:
    true, said = _random_case(seed)
    report = label_report(true, said)
    assert sum(map(sum, report.confusion)) == report.rows == len(true)
    assert report.accuracy.value * report.rows == pytest.approx(report.confusion[0][0] + report.confusion[1][1])
    assert report.unparsed.value * report.rows == pytest.approx(said.count(None))


def test_more_rows_give_narrower_intervals() -> None:
    few, many = (label_report([0, 1] * n, [0, 1, 1, 1] * (n // 2)) for n in (20, 320))
    for a, b in zip(_estimates(few), _estimates(many), strict=True):
        assert b.high - b.low < a.high - a.low


def test_who_has_learned_nothing_says_the_commonest_label() -> None:
    report = label_report([0, 0, 0, 1, 1], [1, 1, 1, 1, None])
    assert (report.commonest.label, report.commonest.rows) == (0, 3)
