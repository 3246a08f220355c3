"""Searches from the command line that lose Ray, processes or their disk, and go on by themselves or by --resume."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.state.run_dir import RunDir
from tests.chaos.invariants import evaluations, problems
from tests.chaos.kill_search import Night, run_night, table
from tests.conftest import SMALL
from tests.support.cli import ROOT, environment, run_command
from tests.support.sessions import await_session
from tests.trials.system.test_disk_full import needs_mount
from trials.records.trial_dir import EndingKind
from trials.system.processes import processes

pytestmark = pytest.mark.slow

SETTINGS = [*SMALL, "train_tokens=12000", "evaluations=9"]
ONE_AFTER_ANOTHER = [*SETTINGS, "search.concurrent_trials=1"]
"""One engine has to be opened in every session, not two."""


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command whose output goes to a pipe; whatever it's left of it afterwards is ended."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def kill_in_session(session: int, name: str) -> None:
    """Kills the process of this name."""
    (victim,) = [process.pid for process in processes() if process.session == session and process.name == name]
    os.kill(victim, signal.SIGKILL)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    seen = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line)
        if words in line:
            break
    return "".join(seen)


@pytest.fixture(scope="module")
def without_its_daemons(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, str, int, list[int], dict]:
    """A search under which Ray's raylet is killed, and then, in the next session, its GCS."""
    out = tmp_path_factory.mktemp("broken") / "run"
    command = [
        sys.executable,
        "-m",
        "orchestrator.search",
        "demo",
        "--out",
        str(out),
        "--budget",
        "5m",
        "--trials",
        "3",
    ]
    seen, sessions, output = {}, [], ""
    with running([*command, "--set", *ONE_AFTER_ANOTHER]) as process:
        for name, words in (("raylet", "trial 0001 at"), ("gcs_server", "goes on from ")):
            output += read_until(process, words)
            mark = await_session(out)
            sessions.append(mark["session"])
            assert Path(mark["ray_folder"]).is_dir()
            with (out / "ray_folders").open("a") as file:
                file.write(f"{mark['ray_folder']}\n")
            seen = evaluations(out, seen)
            kill_in_session(mark["session"], name)
            output += read_until(process, "the search broke")
        rest, _ = process.communicate(timeout=240)
    return RunDir(out), output + rest, process.returncode, sessions, seen


def test_a_search_outlives_its_ray(without_its_daemons: tuple[RunDir, str, int, list[int], dict]) -> None:
    run, output, code, sessions, seen = without_its_daemons
    assert code == 0, output
    assert output.count("error: a process of Ray has ended") == 2
    assert output.count("the search broke (Ray gave up), and goes on from what is on disk in ") == 2
    assert len(set(sessions)) == 2
    assert seen
    assert problems(run, seen, json.loads((run.path / "search.json").read_text())["deadline"]) == []


def test_trials_went_on_under_their_own_ids_and_none_is_blamed(
    without_its_daemons: tuple[RunDir, str, int, list[int], dict],
) -> None:
    run, output, *_ = without_its_daemons
    records = run.records()
    assert [record.id for record in records[:2]] == ["0000", "0001"]
    assert not [record for record in records if record.ending is None or record.ending.kind is EndingKind.FAILED]
    assert "trial 0001 goes on from" in output


def test_nothing_of_a_broken_ray_is_left(
    without_its_daemons: tuple[RunDir, str, int, list[int], dict],
) -> None:
    run, _, _, sessions, _ = without_its_daemons
    assert not [process for process in processes() if process.session in sessions]
    assert not (run.path / "session.json").exists()
    folders = (run.path / "ray_folders").read_text().splitlines()
    assert len(set(folders)) == 2
    assert not [folder for folder in folders if Path(folder).exists()]


def test_what_a_broken_ray_said_last_is_kept(without_its_daemons: tuple[RunDir, str, int, list[int], dict]) -> None:
    run, *_ = without_its_daemons
    assert len(list(run.logs.glob("ray-*/raylet.out"))) == 2


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
def test_a_disk_that_is_full_and_one_that_is_read_only(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    python = f"timeout 400 {sys.executable}"
    search = " ".join([python, "-m", "orchestrator.search", "demo", "--set", *ONE_AFTER_ANOTHER])
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
    assert not [record.id for record in run.records() if record.ending.kind is EndingKind.FAILED]
    assert problems(run, {}, json.loads((run.path / "search.json").read_text())["deadline"]) == []


def test_a_night_of_kills(tmp_path: Path) -> None:
    """The short version of tests.chaos.kill_search, from which the figures come."""
    options = ["--budget", "6m", "--trials", "6", "--set", *SETTINGS]
    victims = ("session", "command")  # engines and proxies are killed in test_engines.py
    night = run_night(Night(tmp_path / "run", options, most_seconds=8), 2, random.Random(3), victims)
    assert night.command is not None
    assert night.command.returncode == 0, (tmp_path / "run.log").read_text()[-4000:]
    assert len(night.kills) == 2, table(night)
    assert problems(RunDir(tmp_path / "run"), night.seen, night.deadline) == []
