"""The table: paired differences to our search, their errors, and what happened to each rival."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.head_to_head.curves import Evaluation
from benchmarks.head_to_head.outcomes import Outcome
from benchmarks.head_to_head.rivals import LABELS, Rival
from benchmarks.head_to_head.table import as_json, lines, over_seeds, table_text
from trials.metrics.row_losses import RowLosses

COUNTS = [10, 20, 30, 40]
OURS = RowLosses([10.0, 22.0, 27.0, 41.0], COUNTS)
STOCK = RowLosses([11.0, 25.0, 30.0, 44.0], COUNTS)


def outcome(rival: Rival, seed: int = 0, *, adapter: str | None = "run/best", **changes: object) -> Outcome:
    ready = None if adapter is None else 55.0
    values: dict[str, object] = {
        **{"rival": rival, "budget_seconds": 60.0, "seed": seed, "command": ("x",), "seconds": 50.0},
        **{"ready_seconds": ready, "exit_code": 0, "was_cut_off": False, "adapter": adapter, "trials": 7},
        **{"tokens": 5000, "winner_share": None if adapter is None else 0.25, "evaluations": (Evaluation(3.0, 2.0),)},
    }
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


def test_differences_are_paired_by_row() -> None:
    judged = {(60.0, 0, Rival.OURS): OURS, (60.0, 0, Rival.STOCK): STOCK}
    stock, ours = lines([outcome(Rival.STOCK), outcome(Rival.OURS)], judged)
    assert ours.difference is None
    assert stock.difference is not None
    assert stock.difference.difference == pytest.approx(10 / 100)
    per_row = [1 - 0.1 * 10, 3 - 0.1 * 20, 3 - 0.1 * 30, 3 - 0.1 * 40]
    assert stock.difference.standard_error == pytest.approx(math.sqrt(4 / 3 * sum(x * x for x in per_row)) / 100)


def test_the_table_says_all_of_a_rival_in_one_line() -> None:
    judged = {(60.0, 0, Rival.OURS): OURS, (60.0, 0, Rival.STOCK): STOCK}
    text = table_text(lines([outcome(Rival.STOCK), outcome(Rival.OURS)], judged), judged)
    title, headings, stock, ours = text.splitlines()
    assert title == "1m00s of wall clock each, seed 0"
    assert headings.split("  ")[0] == "rival"
    assert stock.startswith(LABELS[Rival.STOCK])
    assert stock.split()[-8:] == ["1.1000", "+0.1000", "±", "0.0163*", "50s", "7", "0.25", "100"]
    assert " 1.0000 " in ours
    assert "±" not in ours


def test_accidents_are_named() -> None:
    found = [
        outcome(Rival.RECIPE, was_cut_off=True),
        outcome(Rival.STOCK, adapter=None, exit_code=1),
        outcome(Rival.OURS, ready_seconds=63.2),
    ]
    text = table_text(lines(found, {}), {})
    assert "cut off at the deadline" in text
    assert "no adapter, exit code 1" in text
    assert "adapter 3 s late" in text


def test_without_our_adapter_there_are_losses_and_no_differences() -> None:
    judged = {(60.0, 0, Rival.STOCK): STOCK}
    stock, ours = lines([outcome(Rival.STOCK), outcome(Rival.OURS, adapter=None, exit_code=3)], judged)
    assert stock.difference is None
    assert "1.1000" in stock.cells()
    assert ours.losses is None


def test_seeds_are_averaged_row_by_row() -> None:
    judged = {
        (60.0, 0, Rival.OURS): OURS,
        (60.0, 0, Rival.STOCK): STOCK,
        (60.0, 1, Rival.OURS): STOCK,
        (60.0, 1, Rival.STOCK): OURS,
    }
    mean = over_seeds(judged, 60.0, Rival.STOCK)
    assert mean is not None
    assert mean[0] == 2
    assert mean[1].difference == pytest.approx(0)
    assert over_seeds(judged, 60.0, Rival.OURS) is None
    assert over_seeds(judged, 60.0, Rival.RECIPE) is None
    outcomes = [outcome(rival, seed) for seed in (0, 1) for rival in (Rival.STOCK, Rival.OURS)]
    text = table_text(lines(outcomes, judged), judged)
    assert "seed 1" in text
    assert f"{LABELS[Rival.STOCK]}: +0.0000 ± 0.0000  (2 seeds)" in text


def test_the_json_has_every_row() -> None:
    judged = {(60.0, 0, Rival.OURS): OURS, (60.0, 0, Rival.STOCK): STOCK}
    found = lines([outcome(Rival.STOCK), outcome(Rival.OURS), outcome(Rival.RECIPE, adapter=None)], judged)
    stock, ours, recipe = json.loads(json.dumps(as_json(found)))
    assert stock["test_rows"] == {"loss_sums": STOCK.loss_sums, "token_counts": COUNTS}
    assert stock["minus_ours"]["difference"] == pytest.approx(0.1)
    assert ours["minus_ours"] is None
    assert ours["evaluations"] == [{"seconds": 3.0, "eval_loss": 2.0}]
    assert recipe["test_loss"] is None
