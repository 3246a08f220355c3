"""Predicted against actual, from the run folder alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.report.data import read_report_data
from orchestrator.report.forecast_check import forecast_check
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Consolidation
from orchestrator.state.timing import EXPORTED, TRAINING_OVER, record_moment
from tests.support.report_runs import BASE, STARTED, Told, new_run, write_export, write_prediction, write_trial
from trials.records.memory_report import Attempt, MemoryReport, write_memory_report
from trials.records.trial_dir import Ending, TrialDir
from trials.state import TrialState

PRUNED = Ending(TrialState.PRUNED, "other trials looked more promising")
WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "torch", "transformers", "peft", "datasets"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from orchestrator.report.render import main
sys.exit(main(sys.argv[1:]))
"""
"""The report's command on a machine where these libraries aren't installed."""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Two trials, one of them at full length, without an export."""
    run = new_run(tmp_path / "run", ["price_per_gpu_hour=2"])
    write_trial(run, BASE)
    write_trial(run, Told("0001", [1.4, 1.3, 1.2]))
    write_trial(run, Told("0002", [1.5], ending=PRUNED))
    write_prediction(run)
    return run


def rows(run: RunDir) -> dict[str, tuple[str, str]]:
    section = forecast_check(read_report_data(run))
    assert section is not None
    return {row.what: (row.predicted, row.actual) for row in section.rows}


def row(run: RunDir, beginning: str) -> tuple[str, str]:
    return next(value for what, value in rows(run).items() if what.startswith(beginning))


def test_without_a_prediction_there_is_no_section(tmp_path: Path) -> None:
    assert forecast_check(read_report_data(new_run(tmp_path / "run"))) is None


def test_a_prediction_that_cannot_be_read_is_left_out(run: RunDir) -> None:
    content = json.loads((run.path / "search.json").read_text())
    (run.path / "search.json").write_text(json.dumps({**content, "prediction": {"trials": 3}}))
    assert forecast_check(read_report_data(run)) is None


def test_counts_and_speed(run: RunDir) -> None:
    assert row(run, "configurations tried") == ("25", "2")
    assert row(run, "trained at full length") == ("5", "1")
    assert row(run, "tokens trained in all") == ("1,000,000", f"{4 * 11_112:,}")
    assert row(run, "tokens/s of a trial") == ("500", f"{11_112 / 21.5:,.0f}")


def test_the_end_of_the_night(run: RunDir) -> None:
    ends = STARTED + timedelta(hours=9)
    assert row(run, "export there")[1] == "not yet"
    assert row(run, "reserve") == ("5m00s kept", "\u2013")
    record_moment(run, TRAINING_OVER, ends - timedelta(seconds=290))
    exported = ends - timedelta(seconds=250)
    record_moment(run, EXPORTED, exported)
    assert row(run, "export there") == (f"{STARTED + timedelta(hours=8, minutes=58):%H:%M:%S}", f"{exported:%H:%M:%S}")
    assert row(run, "reserve") == ("5m00s kept", "40s used")
    record_moment(run, EXPORTED, ends + timedelta(seconds=5))
    assert row(run, "export there")[1].endswith(", 5s late")


def test_an_export_without_timing_says_when_it_was_made(run: RunDir) -> None:
    write_export(run, "0001", 1.2, exported=(STARTED + timedelta(hours=8)).isoformat())
    assert row(run, "export there")[1] == f"{STARTED + timedelta(hours=8):%H:%M:%S}"


def test_memory_is_that_of_the_largest_trial(run: RunDir) -> None:
    assert not [what for what in rows(run) if "memory" in what]
    for trial, peak in (("0001", 3), ("0002", 5)):
        tried = (Attempt(16, 4096, recomputation=False, fits=False), Attempt(8, 2048, recomputation=False, fits=True))
        write_memory_report(
            TrialDir(run.trial(trial)),
            MemoryReport((peak + 1) * 2**30, peak * 2**30, 8, recomputation=False, tried=tried),
        )
    assert row(run, "GPU memory") == ("6.00", "5.00; 2 split smaller to fit")
    (run.trial("0002") / "memory.json").write_text("{half")
    assert row(run, "GPU memory") == ("4.00", "3.00; 1 split smaller to fit")
    write_memory_report(TrialDir(run.trial("0001")), MemoryReport(2**30, None, 8, recomputation=False))
    assert not [what for what in rows(run) if "memory" in what]  # on a CPU nobody measures it


def test_disk_counts_every_file_once(run: RunDir) -> None:
    (run.path / "large").write_bytes(bytes(30 * 2**20))
    (run.path / "same").hardlink_to(run.path / "large")
    assert row(run, "disk") == ("at most 0.50", "0.03")


def test_energy_and_cost_count_both_gpus_until_the_export(run: RunDir) -> None:
    record_moment(run, EXPORTED, STARTED + timedelta(hours=8))
    assert row(run, "energy") == ("8.10", f"{2 * 8 * 0.45:.2f}")
    assert not [what for what in rows(run) if "cost" in what]
    write_prediction(run, cost=35.8)
    assert row(run, "cost at 2 per GPU-hour") == ("35.80", "32.00")


def test_going_over_to_all_gpus_is_told_with_what_came_of_it(run: RunDir) -> None:
    reason = "trial 0003 looks most promising"
    changed = Consolidation(2, 1.6, "0003", reason, "2026-11-22T04:30:00+00:00")
    run.write_search(replace(run.read_search(), regrouped=changed))
    section = forecast_check(read_report_data(run))
    assert section is not None
    said = f"Since 04:30:00 UTC 2 GPUs trained each trial together: {reason}."
    assert section.sentences[-1] == said  # nothing was trained so yet
    write_trial(run, Told("0003", [1.5, 1.4, 1.3, 1.2, 1.15, 1.1, 1.05, 1.0], ranks=2, step_seconds=21.5 / 2))
    section = forecast_check(read_report_data(run))
    assert section is not None
    told, speedup = section.sentences[-1].split(" Trials then were ")
    assert told == said
    assert 1.8 < float(speedup.split()[0]) < 2.05
    assert speedup.endswith("times as fast as before (1.60 predicted).")


def test_the_sentences_say_when_it_was_predicted_and_how_long_a_trial_is(run: RunDir) -> None:
    section = forecast_check(read_report_data(run))
    assert section is not None
    assert section.sentences[0].startswith("Predicted 3m00s after the start")
    assert "100,000 tokens in this search, 2 of the training data: 0.25 of the 400,000" in section.sentences[1]


def test_the_report_needs_neither_ray_nor_torch_for_it(run: RunDir) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(run.path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    page = (run.path / "report.html").read_text()
    assert "<h2>Plan and search</h2>" in page
    assert "trained at full length" in page
