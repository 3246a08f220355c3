"""Searches from the command line that lose Ray, processes or their disk, and go on by themselves or by --resume."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.state.run_dir import RunDir
from tests.chaos.invariants import problems
from tests.chaos.kill_search import Night, run_kills, table
from tests.conftest import SMALL
from tests.support.cli import run_command, searcher
from tests.trials.system.test_disk_full import needs_mount
from trials.state import TrialState
from trials.system.processes import session_processes

pytestmark = pytest.mark.slow

ONE_AFTER_ANOTHER = [*SMALL, "train_tokens=12000", "evaluations=9", "search.concurrent_trials=1"]
"""One engine has to be opened in every session, not two."""


@dataclass(frozen=True)
class Killed:
    """A search whose processes were killed one after another, when it had ended."""

    night: Night
    run: RunDir
    said: str

    @property
    def marks(self) -> list[dict[str, Any]]:
        """The `session.json` of each session in which somebody was killed."""
        return [kill.mark for kill in self.night.kills if kill.mark is not None]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """A search under which Ray's raylet is killed, then its GCS, then the session, and then the command.

    Engines and proxies are killed in tests/orchestrator/execution/test_worker_pool.py.
    """
    out = tmp_path_factory.mktemp("killed") / "run"
    options = ["--budget", "12m", "--trials", "3", "--set", *ONE_AFTER_ANOTHER, *searcher("tpe", "asha")]
    night = run_kills(Night(out, options), ("raylet", "gcs", "session", "command"))
    return Killed(night, RunDir(out), out.with_suffix(".log").read_text())


def test_a_search_outlives_its_processes(killed: Killed) -> None:
    assert killed.night.command is not None
    assert killed.night.command.returncode == 0, killed.said[-4000:]
    assert [kill.victim for kill in killed.night.kills] == ["raylet", "gcs", "session", "command"], table(killed.night)
    assert [kill.resumed for kill in killed.night.kills] == [False, False, False, True]
    assert problems(killed.run, killed.night.seen, killed.night.deadline) == []


def test_a_broken_ray_is_named_and_another_one_started(killed: Killed) -> None:
    assert killed.said.count("error: a process of Ray has ended") == 2
    assert killed.said.count("the search broke (Ray gave up), and goes on from what is on disk in ") == 2
    assert len({mark["session"] for mark in killed.marks}) == 4


def test_trials_went_on_under_their_own_ids_and_none_is_blamed(killed: Killed) -> None:
    records = killed.run.records()
    assert [record.id for record in records[:2]] == ["0000", "0001"]
    assert not [record for record in records if record.ending is None or record.ending.kind is TrialState.FAILED]
    assert "trial 0001 goes on from" in killed.said


def test_nothing_of_a_broken_ray_is_left(killed: Killed) -> None:
    assert not [process for mark in killed.marks for process in session_processes(mark["session"])]
    assert not (killed.run.path / "session.json").exists()
    folders = {mark["ray_folder"] for mark in killed.marks}
    assert len(folders) == 4
    assert not [folder for folder in folders if Path(folder).exists()]


def test_what_a_broken_ray_said_last_is_kept(killed: Killed) -> None:
    assert len(list(killed.run.logs.glob("ray-*/raylet.out"))) >= 2


FULL = """
set -u
mount -t tmpfs -o size=3m none {folder}
{search} --budget 20m --trials 4 --out {folder}/run; echo "ENDED $?"
mount -o remount,ro {folder}
{resume}; echo "ENDED $?"
{python} -m orchestrator.report {folder}/run --to {elsewhere}/report; echo "ENDED $?"
{python} -m orchestrator.export {folder}/run --to {elsewhere}/export; echo "ENDED $?"
mount -o remount,rw,size=300m {folder}
{resume}; echo "ENDED $?"
cp -r {folder}/run {elsewhere}/run
"""


@needs_mount
@pytest.mark.timeout(1800)
def test_a_disk_that_is_full_and_one_that_is_read_only(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    python = f"timeout 400 {sys.executable}"
    settings = [*ONE_AFTER_ANOTHER, *searcher("random", "median")]
    search = " ".join([python, "-m", "orchestrator.search", "demo", "--set", *settings])
    resume = f"{python} -m orchestrator.search --resume {folder}/run"
    script = FULL.format(folder=folder, elsewhere=elsewhere, python=python, search=search, resume=resume)
    output = run_command(["unshare", "-rm", "sh", "-c", script + "exec 2>&1"], timeout=1500)
    parts = (output.stdout + output.stderr).split("ENDED ")
    said, codes = output.stderr, [int(part[:3].split()[0]) for part in parts[1:6]]
    assert codes == [130, 2, 0, 0, 0], output.stdout + output.stderr
    assert said.count("takes no more") == 1
    assert f"then go on by --resume {folder}/run" in said
    assert f"can't write to {folder}/run: Read-only file system. Make room or give it write access" in said
    assert (elsewhere / "report" / "report.html").is_file()
    assert (elsewhere / "export" / "manifest.json").is_file()
    run = RunDir(elsewhere / "run")
    assert not [record.id for record in run.records() if record.ending is None]
    assert not [record.id for record in run.records() if record.ending.kind is TrialState.FAILED]
    assert problems(run, {}, json.loads((run.path / "search.json").read_text())["deadline"]) == []
