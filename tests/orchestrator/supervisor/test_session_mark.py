"""What is ended and removed after a killed session, and what never is: real processes, real folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ray_setup import folder as ray_folder
from orchestrator.state.run_dir import RunDir
from orchestrator.supervisor.session_mark import clear_session, end_last_session
from tests.support.cli import ROOT
from trials.system.processes import SessionMark, is_alive


@pytest.fixture
def left_behind() -> Iterator[subprocess.Popen[bytes]]:
    """A process of a session whose command is gone."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    """The temporary folder of a session's Ray, with logs."""
    folder = ray_folder.make(ray_folder.planned())
    logs = folder / "ray" / "session_2026-11-29_18-38-00_869136_15663" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text("x" * 100_000 + "the reason")
    (logs / "gcs_server.err").touch()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def write_mark(run: RunDir, session: int, folder: Path, changed: dict[str, Any] | None = None) -> None:
    mark = asdict(SessionMark.of(session, folder.name))
    content = {**mark, "ray_folder": str(folder), "run": run.path.stat().st_ino, **(changed or {})}
    (run.path / "session.json").write_text(json.dumps(content))


def test_what_a_killed_command_left_behind_is_ended_and_removed(
    run: RunDir, left_behind: subprocess.Popen[bytes], folder: Path
) -> None:
    write_mark(run, left_behind.pid, folder)
    end_last_session(run)
    assert not is_alive(left_behind.pid)
    assert not (run.path / "session.json").exists()
    assert not folder.exists()
    (kept,) = run.logs.glob("ray-*/*")
    assert kept.name == "raylet.err"
    assert kept.read_text().endswith("the reason")
    assert kept.stat().st_size < 20_000


@pytest.mark.parametrize(
    "other",
    [
        {"host": "another"},
        {"boot": "yesterday's"},
        {"started": 1},
        {"user": os.geteuid() + 1},
        {"run": 1},
        {"ray_folder": ""},
    ],
    ids=str,
)
def test_processes_that_are_not_surely_that_session_s_are_let_be(
    run: RunDir, left_behind: subprocess.Popen[bytes], folder: Path, other: dict[str, Any]
) -> None:
    write_mark(run, left_behind.pid, folder, other)
    end_last_session(run)
    assert is_alive(left_behind.pid)


def test_a_mark_of_an_earlier_version_ends_nothing(run: RunDir, left_behind: subprocess.Popen[bytes]) -> None:
    mark = SessionMark.of(left_behind.pid)
    before = {"host": mark.host, "boot": mark.boot, "session": mark.session}
    (run.path / "session.json").write_text(json.dumps(before))
    end_last_session(run)
    assert is_alive(left_behind.pid)


def test_a_copy_of_a_run_folder_ends_nothing_of_the_original_s(
    run: RunDir, left_behind: subprocess.Popen[bytes], folder: Path
) -> None:
    write_mark(run, left_behind.pid, folder)
    shutil.copytree(run.path, run.path.with_name("copy"))
    end_last_session(RunDir(run.path.with_name("copy")))
    assert is_alive(left_behind.pid)
    assert folder.exists()


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "null", '{"run": 1}'])
def test_a_mark_that_was_half_written_is_no_mark(run: RunDir, text: str) -> None:
    (run.path / "session.json").write_text(text)
    end_last_session(run)


def test_no_folder_is_removed_but_one_of_ours(run: RunDir, tmp_path: Path) -> None:
    for name in ("precious", "qlora-1234567g", "qlora-00000001"):
        named = tmp_path / name
        named.mkdir()
        other = {"token": "qlora-00000002"} if name.endswith("1") else {"token": name}
        write_mark(run, os.getpid(), named, other)
        clear_session(run, broke=True)
        assert named.exists(), name
    (tmp_path / "qlora-00000003").symlink_to(tmp_path / "precious")
    write_mark(run, os.getpid(), tmp_path / "qlora-00000003")
    clear_session(run, broke=True)
    assert (tmp_path / "precious").exists()


MARKING = """
import sys
from pathlib import Path
from orchestrator.state.run_dir import RunDir
from orchestrator.supervisor.session_mark import mark_session
print(mark_session(RunDir(Path(sys.argv[1]))), flush=True)
sys.stdin.read()
"""


def test_a_session_s_folder_is_this_user_s_alone_and_on_record(run: RunDir) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MARKING, str(run.path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        umask=0,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.stat().st_mode & 0o777 == 0o700
    end_last_session(run)
    assert process.wait() < 0
    process.communicate()
    assert not folder.exists()
