"""Whole searches, and a trial, from the command line under ordinary accidents of a search: each goes on and exports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SMALL
from tests.support.cli import ROOT, environment, small_search
from tests.support.sessions import await_session
from tests.support.terminals import Terminal, says, wait_for
from trials.system.processes import session_processes

pytestmark = pytest.mark.slow

OPTIONS = ["search.concurrent_trials=1", "test=null", "--budget", "20m", "--trials", "1", "--out"]


def stamped(log: Path) -> list[str]:
    """What a log says, without the time of each line, and without what libraries in C have said."""
    return [line[25:] for line in log.read_text(encoding="utf-8").splitlines() if line[23:25] == "Z "]


def test_a_closed_terminal_then_sigterm_during_the_export(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "run/logs/search.log"
    terminal = Terminal([*small_search(*OPTIONS, str(run))], TERM="xterm")
    shown = terminal.read_until("0000 base")
    session = await_session(run)["session"]
    terminal.close()
    os.kill(session, signal.SIGHUP)
    wait_for(lambda: says(log, "exporting the best trial"), terminal.process)
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(900) == 130, log.read_text()
    assert "\x1b" in shown  # it was a table
    said = stamped(log)
    gone = [line for line in said if "the console is gone (standard output: Input/output error)" in line]
    assert len(gone) == 2  # of two processes
    assert any("trial 0001 finished, best eval loss" in line for line in said)
    assert any("the export in hand is completed first" in line for line in said)
    assert f"adapter: {run / 'export'}" in said
    assert not any("\x1b" in line or "Traceback" in line for line in said)
    assert json.loads((run / "export/manifest.json").read_text())["verified"]["difference"] <= 1e-3
    assert (run / "report.html").exists()
    assert not session_processes(session)


def test_ctrl_c_that_ends_tee_as_well(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "run/logs/search.log"
    command = " ".join(small_search("train_tokens=60000", *OPTIONS, str(run)))
    shell = subprocess.Popen(
        ["bash", "-c", f"trap : INT; {command} | tee {tmp_path / 'tee.txt'}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(lambda: says(log, "trial 0001 at"), shell)
    session = await_session(run)["session"]
    os.killpg(shell.pid, signal.SIGINT)  # as the terminal does, to all of the pipeline
    _, stderr = shell.communicate(timeout=900)
    assert shell.returncode == 130, stderr
    said = stamped(log)
    assert "the console is gone (standard output: Broken pipe): this goes on without it" in said
    assert f"adapter: {run / 'export'}" in said
    assert any(line.startswith("go on: ") for line in said)
    assert (run / "export/manifest.json").exists()
    assert "Traceback" not in log.read_text() + stderr.decode()
    assert not session_processes(session)


def test_a_trial_goes_on_when_its_terminal_is_closed(tmp_path: Path) -> None:
    trial = tmp_path / "trial"
    command = [sys.executable, "-m", "trials.train", "demo", "--set", *SMALL, "--out", str(trial)]
    terminal = Terminal(command)
    terminal.read_until("eval loss")
    terminal.close()
    assert terminal.process.wait(900) == 0
    said = stamped(trial / "log.txt")
    assert sum("tokens: eval loss " in line for line in said) == 3
    assert f"best adapter: {trial / 'adapter'}" in said
    assert "the console is gone (standard output: Input/output error): this goes on without it" in said
