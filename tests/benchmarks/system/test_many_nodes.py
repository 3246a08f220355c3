"""A small run of the benchmark of many nodes: its figures are of trials that really went through the whole stack."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.system.many_nodes import overheads
from orchestrator.state.run_dir import RunDir
from tests.support.cli import run_command
from trials.state import TrialState
from trials.system.files import append_json_line

pytestmark = pytest.mark.cluster


def test_overhead_is_what_a_slot_was_neither_free_nor_trained_in(tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    lines = [("0000", 0.0, 1.0, 0.0), ("0001", 2.0, 6.0, 4.0), ("0002", 6.5, 9.0, 2.0), ("0001", 9.5, 12.0, 2.0)]
    for trial, began, ended, slept in lines:
        line = {"trial": trial, "began": began, "ended": ended, "slept": slept}
        append_json_line(tmp_path / "segments" / "engine-0.jsonl", line)
    costs, segments = overheads(RunDir(tmp_path))
    assert costs == {"0002": 1.0, "0001": 1.0}
    assert len(segments) == 3


def test_trials_on_two_nodes_go_through_the_whole_stack(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.system.many_nodes",
        "--nodes",
        "2",
        "--trials",
        "4",
        "--seconds",
        "0.5",
    ]
    # A folder of its own for Ray, whose paths may not be long: others find no cluster there that they could join.
    with tempfile.TemporaryDirectory(dir="/tmp") as ray_folder:
        done = run_command([*command, "--out", str(tmp_path / "run")], timeout=600, RAY_TMPDIR=ray_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"4 trials \(finished\) in \d+ segments on 2 slots", done.stdout)
    assert re.search(r"slot-seconds not training, per trial: median \d+\.\d\d", done.stdout)
    records = RunDir(tmp_path / "run").records()
    assert [record.ending.kind for record in records if record.ending] == [TrialState.FINISHED] * 5
    assert {path.name for path in (tmp_path / "run" / "segments").iterdir()} == {"engine-0.jsonl", "engine-1.jsonl"}
