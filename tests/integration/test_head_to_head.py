"""The whole head-to-head on the demo's model, with the two rivals that end before their time, as short as can be.

The others fill their time, whatever it is, and have tests of their parts.
"""

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
RIVALS = (Rival.RECIPE, Rival.OURS)
# Both end long before, as their trials are few and short: nothing depends on how busy the machine is.
BUDGET = "6m"
SETTINGS = [*(each for each in SMALL if not each.startswith("test_rows")), "search.reserve=25s", "search.trials=4"]


def command(out: Path, *options: str) -> list[str]:
    rows = [str(DEMO / name) for name in ("base", "train.jsonl", "dev.jsonl")]
    rows.append(f"{DEMO / 'test.jsonl'}[:{TEST_ROWS}]")
    given = ["--budgets", BUDGET, "--rivals", ",".join(RIVALS), "--cpu", "--out", str(out), "--set", *SETTINGS]
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
    assert list(found) == [rival.value for rival in RIVALS]
    for result in found.values():
        assert result["adapter"], result
        rows = RowLosses(**result["test_rows"])  # type: ignore[arg-type]
        assert len(rows.token_counts) == TEST_ROWS
        assert result["test_loss"] == pytest.approx(rows.mean)
        assert result["evaluations"]


def test_differences_are_those_of_the_rows(done: subprocess.CompletedProcess[str], out: Path) -> None:
    found = results(out)
    ours, recipe = (RowLosses(**found[rival]["test_rows"]) for rival in (Rival.OURS, Rival.RECIPE))  # type: ignore[arg-type]
    assert found[Rival.RECIPE]["minus_ours"] == vars(compare(ours, recipe))


def test_the_recipe_is_trained_as_written(done: subprocess.CompletedProcess[str], out: Path) -> None:
    found = results(out)
    assert found["recipe"]["winner_share"] == pytest.approx(1, abs=0.1)
    assert found["ours"]["trials"] == 4


def test_the_table_is_printed_and_the_plot_written(done: subprocess.CompletedProcess[str], out: Path) -> None:
    table = (out / "table.txt").read_text()
    assert table in done.stdout
    assert all(LABELS[rival] in table for rival in RIVALS)
    assert (out / "curves.html").stat().st_size > 10_000


def test_a_rival_that_is_there_is_not_run_again(done: subprocess.CompletedProcess[str], out: Path) -> None:
    before = (out / "head_to_head.json").read_text()
    again = run_command(command(out), timeout=120)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("run before") == len(RIVALS)
    assert (out / "head_to_head.json").read_text() == before
