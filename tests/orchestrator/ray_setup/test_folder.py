"""Where Ray's temporary files go: this user's alone, short enough for sockets, wherever TMPDIR points."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.ray_setup import folder as ray_folder
from orchestrator.ray_setup.address import address_check
from orchestrator.state.check_result import Severity
from orchestrator.state.run_dir import RunDir
from trials.errors import SearchBroken

SOCKET = "ray/session_2026-11-29_18-38-00_869136_4194304/sockets/plasma_store"


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """As on a SLURM node."""
    folder = tmp_path / "scratch/users/jane.doe/slurm_jobdir/1355700/tmp.t0016.gpu-node-0042.cluster"
    folder.mkdir(parents=True)
    return folder


def test_a_short_tmpdir_is_used_and_a_deep_one_is_not(short: Path, deep: Path) -> None:
    assert ray_folder.planned({"TMPDIR": str(short)}).parent == short
    assert ray_folder.planned({"TMPDIR": str(deep), "RAY_TMPDIR": str(short)}).parent == short
    assert ray_folder.planned({"TMPDIR": str(deep)}).parent == Path("/tmp")
    assert ray_folder.planned({}).parent == Path("/tmp")


def test_a_socket_fits_into_the_longest_folder_that_is_taken(short: Path) -> None:
    base = short / ("x" * (ray_folder.LONGEST_BASE_BYTES - len(str(short)) - 1))
    base.mkdir()
    folder = ray_folder.make(ray_folder.planned({"TMPDIR": str(base)}))
    assert folder.parent == base
    (folder / SOCKET).parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / SOCKET))
    assert ray_folder.planned({"TMPDIR": f"{base}x"}).parent == Path("/tmp")


def test_bytes_count_not_characters(short: Path) -> None:
    base = short / ("é" * (ray_folder.LONGEST_BASE_BYTES - len(str(short)) - 1))
    base.mkdir()
    assert ray_folder.why_not(base) is not None


def test_a_deep_tmpdir_is_said_with_the_folder_that_is_used(deep: Path) -> None:
    found = address_check({"RAY_ADDRESS": "local", "TMPDIR": str(deep)})
    assert found.level is Severity.OK
    assert "in /tmp, as TMPDIR" in found.text
    assert str(deep) in found.text


def test_where_no_folder_is_fit_the_search_is_impossible(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"TMPDIR": str(deep), "RAY_ADDRESS": "local"}
    monkeypatch.setattr(ray_folder.os, "access", lambda path, _: path == deep)
    found = address_check(given)
    assert found.level is Severity.IMPOSSIBLE
    assert "TMPDIR" in found.text
    assert "TMPDIR=/tmp" in found.remedy
    with pytest.raises(SearchBroken, match="TMPDIR"):
        ray_folder.planned(given)


def test_only_this_user_can_enter_it_whatever_the_umask(short: Path) -> None:
    for umask in (0, 0o777):
        before = os.umask(umask)
        try:
            folder = ray_folder.make(ray_folder.planned({"TMPDIR": str(short)}))
        finally:
            os.umask(before)
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_somebody_has_made_first_is_not_taken(short: Path) -> None:
    folder = ray_folder.planned({"TMPDIR": str(short)})
    folder.mkdir(mode=0o777)
    with pytest.raises(SearchBroken, match="can't be made"):
        ray_folder.make(folder)


def test_logs_of_the_last_broken_sessions_are_kept(short: Path, run: RunDir) -> None:
    for second in range(5):
        folder = ray_folder.make(ray_folder.planned({"TMPDIR": str(short)}))
        logs = folder / f"ray/session_2026-11-29_18-38-0{second}_869136_15663/logs"
        logs.mkdir(parents=True)
        (logs / "raylet.out").write_text(f"{second}")
        (logs / "agent.log").write_text("not so telling")
        ray_folder.keep_logs(folder, run.logs)
        ray_folder.remove(folder)
    assert [path.read_text() for path in sorted(run.logs.glob("ray-*/*"))] == ["2", "3", "4"]
