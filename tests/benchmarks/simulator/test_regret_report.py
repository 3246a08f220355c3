"""Figures of the comparison, from searches that are made up; and the command's errors."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.simulator.__main__ import main
from benchmarks.simulator.landscapes import Reference
from benchmarks.simulator.regret import Forecasted, Played
from benchmarks.simulator.regret_report import (
    Key,
    by_searcher,
    difference,
    estimate,
    lines,
    nearest_rival,
    numbers,
    regrets,
)


def played(searcher: str, loss: float, task: str = "a", seed: int = 0, history: tuple[float, ...] = ()) -> Played:
    losses = (3.0, *history, loss)
    exported = tuple((4.0 * k / (len(losses) - 1), each) for k, each in enumerate(losses))
    return Played(searcher, task, seed, 4.0, 1, exported, Reference(1.0, 2.0), 10, 2, 0.5)


def test_the_error_is_over_tasks_or_over_seeds_of_the_only_task() -> None:
    several: dict[Key, float] = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 4.0, ("b", 1): 4.0}
    assert estimate(several).mean == 3.0
    assert estimate(several).error == pytest.approx(1.0)  # of the means 2 and 4
    assert estimate({("a", 0): 1.0, ("a", 1): 3.0}).error == pytest.approx(1.0)
    assert estimate({("a", 0): 1.0}).error is None


def test_differences_are_paired_with_the_nearest_rival() -> None:
    found = by_searcher(
        [
            *(played("x", 1.0 + 0.5 * seed, seed=seed) for seed in range(3)),
            *(played("y", 1.1 + 0.5 * seed, seed=seed) for seed in range(3)),
            *(played("z", 2.5, seed=seed) for seed in range(3)),
        ]
    )
    assert [nearest_rival(found, name) for name in "xyz"] == ["y", "x", "x"]
    paired = difference(found["x"], found["y"])
    assert paired.mean == pytest.approx(-0.1)
    assert paired.error == pytest.approx(0.0)  # though regrets differ by 0.5 from seed to seed
    assert estimate(regrets(found["x"])).error == pytest.approx(0.289, abs=1e-3)


def test_a_loss_is_reached_when_an_export_stays_as_good() -> None:
    own = played("x", 1.2, history=(1.5, 1.1, 1.4))
    assert own.reached(1.5) == 1.0
    assert own.reached(1.3) == 4.0  # 1.1 was exported in between, and then something worse
    assert own.reached(1.0) is None


def test_lines_have_regret_difference_and_the_share_until_stocks_last_loss() -> None:
    ours, stock = lines([played("x", 1.1, history=(1.2,)), played("tpe/asha", 1.2)])
    assert "regret 0.100" in ours
    assert "-0.100 +- ? against tpe/asha" in ours
    assert "stock's last loss after 0.50 of the search (median; never in 0)" in ours
    assert "0.100 +- ? against x" in stock
    assert "stock's" not in stock


def test_a_line_says_how_often_forecasts_were_wrong() -> None:
    forecasted = tuple(Forecasted(1.0, 0.1, final) for final in (1.05, 0.85, 1.21, 0.79))
    (line,) = lines([replace(played("x", 1.1), forecasted=forecasted)])
    assert line.endswith("50% of 4 incomplete trials outside two deviations of their forecast")
    assert "forecast" not in next(lines([played("x", 1.1)]))


def test_a_list_of_numbers_is_whole_numbers_above_0() -> None:
    assert numbers("6,12") == [6, 12]
    for text in ("6,", "0", "6;12", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match="not allowed"):
            numbers(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "peft", "--curves", "{tmp}"], "no peft_metamathqa.json"),
        (["--tasks", "lcbench", "--curves", "{tmp}"], "no lcbench"),
        (["--tasks", "demo", "--slots", "32", "--budgets", "6,12"], "no budget has a full trial for each slot"),
        (["--tasks", "demo", "--searchers", "nosuch/none"], "nosuch"),
    ],
)
def test_bad_input_is_one_error_before_anything_is_played(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["regret", *(option.format(tmp=tmp_path) for option in options)]) == 2
    assert message in capsys.readouterr().err
