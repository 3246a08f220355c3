"""That two commands never work in one folder: with another process, really."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.search import main as search_main
from search_spaces.schema import Recipe
from tests.conftest import SMALL
from tests.support.fake_search import make_run, make_search
from trials.errors import RunFolderError
from trials.system.locks import exclusive_lock
from trials.train import main

HOLD = """
import sys, time
from pathlib import Path
from trials.system.locks import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def proxy(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_folder_in_use_says_by_whom_and_is_free_when_that_was_killed(tmp_path: Path) -> None:
    other = proxy(tmp_path)
    try:
        held = rf"in use by process {other.pid} on .*Wait until that has ended"
        with pytest.raises(RunFolderError, match=held), exclusive_lock(tmp_path):
            pass
    finally:
        end(other)
    for _ in range(2):
        with exclusive_lock(tmp_path):
            assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_trial_that_another_command_trains_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trial"
    settings = [*SMALL, "train_tokens=800", "evaluations=1", "checkpoint_every_rows=4"]
    assert main(["demo", "--set", *settings, "--out", str(out)]) == 0
    capsys.readouterr()
    files = sorted(out.rglob("*"))
    other = proxy(out)
    try:
        assert main(["--resume", str(out), "--checkpoint", "1"]) == 2
    finally:
        end(other)
    assert f"in use by process {other.pid}" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == files


def test_a_search_that_another_command_conducts_is_not_resumed(
    tmp_path: Path, small_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", make_search(small_recipe))
    other = proxy(run.path)
    search = (run.path / "search.json").read_text()
    try:
        assert search_main(["--resume", str(run.path), "--budget", "1h"]) == 2
    finally:
        end(other)
    assert f"in use by process {other.pid}" in capsys.readouterr().err
    assert (run.path / "search.json").read_text() == search
