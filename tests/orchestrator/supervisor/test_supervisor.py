"""Sessions one after another: which endings are a break, and what is done about it; real processes, no Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.supervisor.interruption import Interruption, interruptible
from orchestrator.supervisor.supervisor import (
    MOST_IN_A_ROW,
    SessionExit,
    evaluations_on_disk,
    in_words,
    run_session,
    run_with_restarts,
)
from tests.support.cli import ROOT, environment
from tests.support.fake_search import point, record
from trials.errors import SearchBroken
from trials.records.trial_dir import Ending, TrialDir
from trials.state import TrialState
from trials.system.processes import is_alive

pytestmark = pytest.mark.slow


class Sessions:
    """Sessions that end with these codes, each after so much more was put on disk; time passes only by waiting."""

    def __init__(self, *codes: tuple[int, int], seconds_left: float = 3600.0) -> None:
        self.codes = list(codes)
        self.on_disk = 0
        self.left = seconds_left
        self.said: list[str] = []
        self.waits: list[float] = []
        self.is_asked = False
        self.asked_after: list[float] | None = None
        """Somebody wants the search to stop in the wait after these."""

    def __call__(self) -> int:
        code, more = self.codes.pop(0)
        self.on_disk += more
        return code

    def wait(self, seconds: float) -> None:
        self.is_asked = self.waits == self.asked_after
        self.waits.append(seconds)
        self.left -= seconds

    def run_them(self) -> SessionExit:
        return run_with_restarts(
            *(self, lambda: self.on_disk, lambda: self.left, self.said.append, self.wait),
            is_asked=lambda: self.is_asked,
            last_error=lambda: "no Ray",
        )


GOES_ON = (SessionExit.BROKEN, SessionExit.CONSOLIDATED)


@pytest.mark.parametrize("code", [code for code in SessionExit if code not in GOES_ON])
def test_what_ends_by_itself_is_not_begun_again(code: SessionExit) -> None:
    sessions = Sessions((code, 0))
    assert sessions.run_them() is code
    assert sessions.said == []


def test_after_regrouping_the_next_session_goes_on_at_once() -> None:
    sessions = Sessions((SessionExit.CONSOLIDATED, 0), (SessionExit.OVER, 1))
    assert sessions.run_them() is SessionExit.OVER
    assert (sessions.codes, sessions.waits, sessions.said) == ([], [], [])
    assert Sessions((SessionExit.CONSOLIDATED, 0), seconds_left=0.0).run_them() is SessionExit.OVER


@pytest.mark.parametrize("code", [SessionExit.BROKEN, 1, -signal.SIGKILL, -signal.SIGSEGV])
def test_what_breaks_begins_again_and_that_is_said(code: int) -> None:
    sessions = Sessions((code, 1), (code, 1), (SessionExit.OVER, 1))
    assert sessions.run_them() is SessionExit.OVER
    assert sessions.said == [f"the search broke ({in_words(code)}), and goes on from what is on disk in 2 s"] * 2


def test_breaking_again_and_again_without_getting_on_is_given_up() -> None:
    sessions = Sessions((1, 3), *[(1, 0)] * (MOST_IN_A_ROW - 1), (SessionExit.OVER, 0))
    with pytest.raises(SearchBroken, match=f"{MOST_IN_A_ROW} times in a row without getting on.*exit code 1: no Ray"):
        sessions.run_them()
    assert sessions.waits == [2, 4, 8, 16, 32, 60, 60]
    assert len(sessions.codes) == 1


def test_as_long_as_it_gets_on_it_may_break_as_often_as_it_likes() -> None:
    sessions = Sessions(*[(1, 0), (1, 0), (1, 1)] * 10, (SessionExit.OVER, 0))
    assert sessions.run_them() is SessionExit.OVER


def test_when_time_is_over_nothing_is_begun_again() -> None:
    sessions = Sessions((1, 0), (1, 0), (1, 0), seconds_left=5.0)
    assert sessions.run_them() is SessionExit.OVER
    assert sessions.waits == [2, 3]
    assert len(sessions.codes) == 0


def test_asked_to_stop_between_two_sessions_it_begins_none_again() -> None:
    sessions = Sessions((1, 0), (1, 0), (SessionExit.OVER, 1))
    sessions.asked_after = [2]
    assert sessions.run_them() is SessionExit.INTERRUPTED
    assert (sessions.waits, len(sessions.codes)) == ([2, 4], 1)


def test_endings_count_as_getting_on_as_evaluations_do(run: RunDir) -> None:
    assert evaluations_on_disk(run) == 0
    folder = TrialDir(run.trial("0001"))
    folder.path.mkdir()
    for tokens in (100, 200):
        record(folder, point(1.0, tokens))
    assert evaluations_on_disk(run) == 2
    folder.end(Ending(TrialState.FINISHED, "made up"))
    assert evaluations_on_disk(run) == 3


def make_session(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a script in the place of `python -m orchestrator.supervisor.session`: what runs it is what's tested here."""
    package = folder / "orchestrator" / "supervisor"
    package.mkdir(parents=True)
    for each in (package.parent, package):
        (each / "__init__.py").touch()  # else one that is found by PYTHONPATH goes before it
    (package / "session.py").write_text(script)
    monkeypatch.chdir(folder)


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
open("pids", "w").write(f"{child.pid}")
time.sleep(600)
"""


def test_a_session_that_is_too_late_is_ended_with_all_its_processes(
    run: RunDir, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    # Training was to end 12 seconds ago; three quarters of the reserve are over in three.
    started = now - timedelta(seconds=60)
    deadline = replace(search.deadline, started=started, ends=now + timedelta(seconds=8), reserve_seconds=20)
    run.write_search(replace(search, deadline=deadline))
    make_session(tmp_path / "elsewhere", STUBBORN, monkeypatch)
    began = time.monotonic()
    assert run_session(run, lambda: datetime.now(UTC), Interruption()) == SessionExit.OVER
    assert 3 <= time.monotonic() - began <= 8
    assert not is_alive(int(Path("pids").read_text(encoding="utf-8")))


OBEDIENT = """
import sys, time
sys.path.insert(0, {root!r})
for name in [name for name in sys.modules if name.startswith("orchestrator")]:
    sys.modules.pop(name)
open("ready", "w").close()
time.sleep(1)  # it imports its modules, and is interrupted
from orchestrator.supervisor.interruption import obey
from trials.cli import run_command

def session():
    obey()
    time.sleep(600)

sys.exit(run_command(session))
"""

BREAKING = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit({code}))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
open("ready", "w").close()
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("script", "signals"),
    [
        (OBEDIENT.format(root=str(ROOT)), [signal.SIGINT]),
        (OBEDIENT.format(root=str(ROOT)), [signal.SIGTERM]),
        (BREAKING.format(code=SessionExit.BROKEN), [signal.SIGINT]),
        (BREAKING.format(code=1), [signal.SIGINT]),
        (STUBBORN + "# ready", [signal.SIGINT] * 3),
    ],
    ids=["INT", "TERM", "Ray breaks over it", "an error comes of it", "three times, in vain"],
)
def test_signals_are_the_session_s_to_obey(
    run: RunDir,
    search: Search,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    script: str,
    signals: list[signal.Signals],
) -> None:
    now = datetime.now(UTC)
    run.write_search(replace(search, deadline=replace(search.deadline, started=now, ends=now + timedelta(hours=1))))
    make_session(tmp_path / "elsewhere", script, monkeypatch)

    def send() -> None:
        while not (Path("ready").exists() or Path("pids").exists()):
            time.sleep(0.05)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # the system hands on one of two of the same kind that come at once

    threading.Thread(target=send, daemon=True).start()
    with interruptible() as interruption:
        assert run_session(run, lambda: datetime.now(UTC), interruption) == SessionExit.INTERRUPTED
    assert interruption.is_asked
    assert "Traceback" not in capfd.readouterr().err


def test_a_session_on_a_broken_search_json_is_refused_with_a_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator.supervisor.session", str(tmp_path), str(os.getpid()), "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == SessionExit.REFUSED
    assert "holds no search" in done.stderr
