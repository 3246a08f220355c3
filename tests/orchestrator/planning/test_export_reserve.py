"""What is kept before the deadline: a cautious guess first, then what the base model's evaluation says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.planning.export_reserve import (
    ExportWork,
    expected_seconds,
    export_work,
    grace_seconds,
    measured_reserve,
)
from orchestrator.state.deadline import first_reserve
from orchestrator.state.search import Placement
from search_spaces.schema import Recipe
from tests.support.fake_search import make_search

DEMO = ExportWork(160, 160, row_tokens=110, samples=3, answer_tokens=158, layers=6, slots=1)
NIGHT = 9 * 3600
COUNTS = {"rows": 160, "tokens": 17_600, "completion_tokens": 8_480, "longest": 125}


@pytest.mark.parametrize(("budget", "kept"), [(60, 30), (240, 30), (3600, 288), (9 * 3600, 600), (48 * 3600, 600)])
def test_the_first_guess_is_a_share_of_the_budget_within_limits(budget: float, kept: float) -> None:
    assert first_reserve(budget) == kept


def test_the_demo_gets_what_it_was_measured_to_need() -> None:
    # two cores: 17.9 s for the base model, 2.6 s of them its evaluation; 29.5 s were used after the last trial
    assert 29.5 * 1.4 < measured_reserve(17.9, 2.63, DEMO, 240) < 29.5 * 2


def test_a_long_night_has_time_for_a_second_try() -> None:
    assert measured_reserve(17.9, 2.63, DEMO, NIGHT) > measured_reserve(17.9, 2.63, DEMO, 240) + 29.5


@pytest.mark.parametrize(
    "change",
    [
        {"test_rows": 1600},
        {"eval_rows": 80},  # each of them takes longer then
        {"answer_tokens": 500},
        {"layers": 32},
        {"slots": 8},
        {"score_rows": 200},
        {"on_gpu": True},
    ],
)
def test_more_work_needs_a_larger_reserve(change: dict[str, Any]) -> None:
    usual = measured_reserve(20, 5, DEMO, NIGHT)
    assert measured_reserve(20, 5, replace(DEMO, **change), NIGHT) > usual
    assert measured_reserve(60, 5, DEMO, NIGHT) > usual + 40  # the model takes longer to load
    assert measured_reserve(20, 5, replace(DEMO, samples=0), NIGHT) < usual


def test_it_never_takes_most_of_the_budget() -> None:
    assert measured_reserve(2000, 900, DEMO, 600) == 240


def test_a_clock_that_jumped_back_does_not_make_it_negative() -> None:
    assert measured_reserve(1, 5, DEMO, 3600) > 10


def test_what_is_to_do_is_read_from_the_search(small_recipe: Recipe) -> None:
    search = make_search(small_recipe)
    counted = replace(search, data={"eval": COUNTS, "test": COUNTS}, placement=Placement(2, 4))
    work = export_work(counted, 4)
    assert work == ExportWork(160, 160, 110.0, samples=1, answer_tokens=159, layers=6, slots=2)
    assert export_work(replace(search, gpus_per_trial=1), 3).on_gpu
    assert export_work(search, 3).eval_rows == 0  # a run folder from before rows were counted


def test_its_parts() -> None:
    assert expected_seconds(100) == pytest.approx(60)
    assert grace_seconds(100) == 25
