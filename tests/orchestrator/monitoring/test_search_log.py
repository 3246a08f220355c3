"""RUN/logs/search.log: what a session that ends badly leaves there, and what a person sees of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from orchestrator.monitoring.search_log import last_error, search_log, size
from orchestrator.state.run_dir import RunDir
from tests.support.cli import ROOT, environment, run_command


def test_the_last_error_since_then(run: RunDir) -> None:
    log = search_log(run)
    assert (size(log), last_error(log, 0)) == (0, None)
    log.append("error: of an earlier session")
    since = size(log)
    assert last_error(log, since) is None
    log.append("all is well\nerror: Ray can't be started\n  Traceback: error: no")
    assert last_error(log, since) == "Ray can't be started"
    assert last_error(log, 0) == "Ray can't be started"


def test_a_session_s_bug_is_one_line_for_people_and_a_traceback_in_the_log(run: RunDir) -> None:
    (run.path / "session.json").mkdir()
    done = run_command([sys.executable, "-m", "orchestrator.supervisor.session", str(run.path), str(os.getpid()), "0"])
    assert done.returncode == 1
    log = search_log(run)
    assert done.stderr.startswith("error: an unexpected IsADirectoryError: ")
    assert done.stderr.endswith(f"Its traceback is in {log.path}\n")
    assert done.stderr.count("\n") == 1
    assert "Traceback (most recent call last)" in log.path.read_text()
    assert last_error(log, 0) == done.stderr.removeprefix("error: ").strip()


CRASHES = """
import ctypes, sys
from pathlib import Path
from orchestrator.state.run_dir import RunDir
from orchestrator.monitoring.search_log import log_session
from trials.cli import run_command

def session():
    log_session(RunDir(Path(sys.argv[1])))
    sys.stderr.write("a word\\n")
    ctypes.string_at(0)

sys.exit(run_command(session))
"""


def test_what_a_crash_leaves_is_in_the_log_and_not_on_the_console(run: RunDir) -> None:
    command = [sys.executable, "-c", CRASHES, str(run.path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGSEGV
    assert (done.stdout, done.stderr.replace("a word\n", "")) == ("", "")
    text = search_log(run).path.read_text()
    assert "Z a word\n" in text
    assert "Fatal Python error: Segmentation fault" in text
