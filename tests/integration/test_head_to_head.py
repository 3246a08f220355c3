"""The whole head-to-head on the demo's model: every rival for real, as short as it can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.head_to_head.rivals import LABELS, Rival
from tests.conftest import SMALL
from tests.support.cli import ROOT, run_command
from trials.metrics.row_losses import RowLosses, compare

pytestmark = pytest.mark.slow

DEMO = ROOT / "search_spaces" / "demo"
TEST_ROWS = 24
# On a busy machine the searches need most of this for imports, the base's evaluation and the export.
BUDGET = "90s"
SETTINGS = [*(each for each in SMALL if not each.startswith("test_rows")), "search.reserve=25s", "search.trials=4"]


def command(out: Path, *options: str) -> list[str]:
    rows = [str(DEMO / name) for name in ("base", "train.jsonl", "dev.jsonl")]
    rows.append(f"{DEMO / 'test.jsonl'}[:{TEST_ROWS}]")
    given = ["--budgets", BUDGET, "--cpu", "--out", str(out), "--set", *SETTINGS]
    return [sys.executable, "-m", "benchmarks.head_to_head", *rows, *given, *options]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("head") / "out"


@pytest.fixture(scope="module")
def done(out: Path) -> subprocess.CompletedProcess[str]:
    return run_command(command(out), timeout=900)


def results(out: Path) -> dict[str, dict[str, object]]:
    found = json.loads((out / "head_to_head.json").read_text())["results"]
    return {result["rival"]: result for result in found}


def test_every_rival_leaves_an_adapter_that_is_judged(done: subprocess.CompletedProcess[str], out: Path) -> None:
    assert done.returncode == 0, done.stderr
    found = results(out)
    assert list(found) == [rival.value for rival in Rival]
    for result in found.values():
        assert result["adapter"], result
        rows = RowLosses(**result["test_rows"])  # type: ignore[arg-type]
        assert len(rows.token_counts) == TEST_ROWS
        assert result["test_loss"] == pytest.approx(rows.mean)
        assert result["evaluations"]


def test_differences_are_those_of_the_rows(done: subprocess.CompletedProcess[str], out: Path) -> None:
    found = results(out)
    ours, stock = (RowLosses(**found[rival]["test_rows"]) for rival in (Rival.OURS, Rival.STOCK))  # type: ignore[arg-type]
    assert found[Rival.STOCK]["minus_ours"] == vars(compare(ours, stock))


def test_the_recipe_fills_the_whole_time(done: subprocess.CompletedProcess[str], out: Path) -> None:
    found = results(out)
    assert found["recipe"]["winner_share"] == pytest.approx(1, abs=0.1)
    assert found["repeated"]["tokens"] > 3 * found["recipe"]["tokens"]  # type: ignore[operator]
    assert found["stock"]["trials"] >= 1  # type: ignore[operator]
    assert found["stock-parts"]["trials"] == found["ours"]["trials"] == 4


def test_the_table_is_printed_and_the_plot_written(done: subprocess.CompletedProcess[str], out: Path) -> None:
    table = (out / "table.txt").read_text()
    assert table in done.stdout
    assert all(label in table for label in LABELS.values())
    assert (out / "curves.html").stat().st_size > 10_000


def test_a_rival_that_is_there_is_not_run_again(done: subprocess.CompletedProcess[str], out: Path) -> None:
    before = (out / "head_to_head.json").read_text()
    again = run_command(command(out), timeout=120)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("run before") == len(Rival)
    assert (out / "head_to_head.json").read_text() == before
