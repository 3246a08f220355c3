"""One command against the wall clock: real processes, which leave nothing behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from benchmarks.head_to_head.timed_run import run_timed
from trials.system.processes import is_alive

WRITES = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1]); folder.mkdir()
(folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "eval_loss": 2.5}) + "\\n")
print("written", flush=True)
"""
WAITS = "time.sleep(600)\n"
HAS_A_CHILD = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / "child").write_text(str(child.pid))
"""


def test_a_command_that_ends_by_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES + "sys.exit(3)", str(tmp_path / "run")]
    found = run_timed(command, os.environ, tmp_path / "run", tmp_path / "log.txt", 60, at_once=True)
    assert (found.exit_code, found.was_cut_off) == (3, False)
    assert [each.eval_loss for each in found.evaluations] == [2.5]
    assert abs(found.started + found.seconds - time.time()) < 60
    assert (tmp_path / "log.txt").read_text() == "written\n"


def test_at_the_deadline_it_is_killed_with_all_its_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES + HAS_A_CHILD + WAITS, str(tmp_path / "run")]
    found = run_timed(command, os.environ, tmp_path / "run", tmp_path / "log.txt", 5, at_once=True)
    assert found.was_cut_off
    assert found.exit_code == -9
    assert [each.eval_loss for each in found.evaluations] == [2.5]
    assert not is_alive(int((tmp_path / "run" / "child").read_text()))


def test_sessions_that_it_opened_are_ended_too(tmp_path: Path) -> None:
    opens = HAS_A_CHILD.replace('600)"]', '600)"], start_new_session=True')
    command = [sys.executable, "-c", WRITES + opens + WAITS, str(tmp_path / "run")]
    run_timed(command, os.environ, tmp_path / "run", tmp_path / "log.txt", 5, at_once=True)
    assert not is_alive(int((tmp_path / "run" / "child").read_text()))


def test_a_search_is_asked_to_end_first(tmp_path: Path) -> None:
    ends = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    command = [sys.executable, "-c", WRITES + ends + WAITS, str(tmp_path / "run")]
    found = run_timed(command, os.environ, tmp_path / "run", tmp_path / "log.txt", 5, at_once=False)
    assert (found.exit_code, found.was_cut_off) == (7, True)
