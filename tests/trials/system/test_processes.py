"""Sessions of real processes: found whoever their parent is, ended whole, and gone with the one that they belong to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.support.cli import ROOT
from tests.support.waiting import wait_until
from trials.system.processes import SessionMark, children, end_session, is_alive, session_processes

# Starts a child that says its id and goes on without it, in a process group of its own, as Ray's workers are.
ORPHANING = """
import os, subprocess, sys
script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", script], process_group=0)
sys.stdin.read()
os._exit(0)
"""


def open_session(stderr: IO[str] | None = None, **variables: str) -> subprocess.Popen[str]:
    """Starts a process that opens a session; its child's id is its first line."""
    return subprocess.Popen(
        [sys.executable, "-c", ORPHANING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        env={**os.environ, **variables},
    )


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[str]]:
    """The process that opened a session."""
    process = open_session()
    yield process
    end_session(process.pid)
    process.communicate()


def test_a_session_is_ended_with_processes_whose_parent_is_gone(leader: subprocess.Popen[str]) -> None:
    assert leader.stdout is not None
    orphan = int(leader.stdout.readline())
    leader.kill()
    leader.wait()
    assert is_alive(orphan)
    assert [process.pid for process in session_processes(leader.pid)] == [orphan]
    assert end_session(leader.pid) == []
    assert not is_alive(orphan)


def test_who_ends_its_own_session_stays(leader: subprocess.Popen[str]) -> None:
    script = (
        "import os; from trials.system.processes import end_session; end_session(os.getsid(0)); print('still here')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, start_new_session=True, capture_output=True, text=True, check=True
    )
    assert done.stdout == "still here\n"


def test_own_children_are_found_by_name_until_they_are_zombies() -> None:
    child = subprocess.Popen(["sleep", "600"])
    assert wait_until(lambda: child.pid in children(["sleep"]))
    assert child.pid not in children(["slee", "python"])
    child.kill()
    assert wait_until(lambda: not is_alive(child.pid))  # nobody has waited for it yet
    assert child.pid not in children(["sleep"])
    child.wait()


RENAMED = """
import time
from pathlib import Path
Path("/proc/self/comm").write_text(") R 1 (")
print("renamed", flush=True)
time.sleep(600)
"""


PARENTING = '''
import os, subprocess, sys, time
script = """
import os, sys, time
from trials.system.processes import die_with
die_with(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(600)
"""
subprocess.Popen([sys.executable, "-c", script, str(os.getpid())])
time.sleep(600)
'''


def test_a_process_dies_with_its_parent_even_of_sigkill() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENTING], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert wait_until(lambda: not is_alive(child))


def test_a_parent_that_is_gone_already_takes_its_child_along() -> None:
    script = "from trials.system.processes import die_with; die_with(1 << 22); print('still here')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_a_mark_is_of_this_machine_since_it_started_and_of_this_user(leader: subprocess.Popen[str]) -> None:
    mark = SessionMark.of(leader.pid)
    assert mark.is_here
    assert not replace(mark, host="another").is_here
    assert not replace(mark, boot="earlier").is_here
    assert not replace(mark, user=mark.user + 1).is_here


def test_a_mark_has_the_ticks_of_the_system_whatever_the_process_is_called() -> None:
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    renamed = subprocess.Popen([sys.executable, "-c", RENAMED], stdout=subprocess.PIPE, start_new_session=True)
    assert renamed.stdout is not None
    assert renamed.stdout.readline()
    for each in (process, renamed):
        since_boot = psutil.Process(each.pid).create_time() - psutil.boot_time()
        assert SessionMark.of(each.pid).started == round(since_boot * os.sysconf("SC_CLK_TCK"))
        assert not end_session(each.pid)
        each.communicate()


def test_a_session_that_has_got_the_id_of_another_is_not_taken_for_it(leader: subprocess.Popen[str]) -> None:
    mark = SessionMark.of(leader.pid)
    assert mark.started > 0
    assert not replace(mark, started=mark.started - 1).is_here


@pytest.mark.parametrize(
    ("token", "is_here"),
    [("TOKEN-OF-THIS-TEST", True), ("ANOTHER-TOKEN", False), ("", False)],
    ids=("its own", "another", "none"),  # pytest puts the id into the environment
)
def test_once_its_first_process_has_gone_another_must_have_the_token(token: str, is_here: bool) -> None:
    process = open_session(TOKEN="TOKEN-OF-THIS-TEST")
    assert process.stdout is not None
    process.stdout.readline()
    mark = SessionMark.of(process.pid, token)
    process.kill()
    process.wait()
    assert mark.is_here is is_here
    assert not end_session(process.pid)
    assert not mark.is_here


def test_a_process_without_the_token_in_its_own_words_is_known_by_its_open_files(tmp_path: Path) -> None:
    """As Ray's workers and agents, which overwrite command line and environment with a title."""
    with (tmp_path / "worker-of-qlora-7.log").open("w", encoding="utf-8") as log:
        process = open_session(stderr=log)
    assert process.stdout is not None
    process.stdout.readline()
    mark = SessionMark.of(process.pid, "qlora-7")
    process.kill()
    process.wait()
    assert mark.is_here
    assert not end_session(process.pid)
    assert not mark.is_here
