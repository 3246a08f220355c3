"""What scripts/down looks for on a machine, and what it says where it can't look."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster import shutdown
from orchestrator.cluster.ray_processes import BOOTSTRAP, ROOT, VARIABLE, end_all, main, running
from trials.system.processes import end_session, session_processes

CHILD = "import subprocess; subprocess.run(['env', '-i', 'sleep', '600'])"


@pytest.fixture
def of_the_cluster() -> Iterator[subprocess.Popen[bytes]]:
    """A process that was started by Ray's command, and has started one without an environment."""
    environment = {**os.environ, VARIABLE: str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", CHILD], env=environment, start_new_session=True)
    yield process
    end_session(process.pid)
    process.wait()


def members(process: subprocess.Popen[bytes]) -> list[int]:
    return [found.pid for found in session_processes(process.pid)]


def test_all_that_the_cluster_has_started_is_ended(of_the_cluster: subprocess.Popen[bytes]) -> None:
    while not any(running().get(pid) == "sleep 600" for pid in members(of_the_cluster)):
        assert of_the_cluster.poll() is None
    assert set(members(of_the_cluster)) <= set(running())
    assert end_all() == {}
    assert members(of_the_cluster) == []


@pytest.mark.parametrize("name", ["ray::Engine", "sleep -m orchestrator.search", "/x/site-packages/ray/dashboard.py"])
@pytest.mark.parametrize("environment", [{}, {VARIABLE: "/another/cluster"}, {"OTHER": f"{VARIABLE}={ROOT}"}], ids=str)
def test_other_rays_and_searches_are_left_alone(name: str, environment: dict[str, str]) -> None:
    with subprocess.Popen(["bash", "-c", f"exec -a '{name}' sleep 600"], env=environment) as other:
        try:
            while not Path(f"/proc/{other.pid}/cmdline").read_bytes().endswith(b"\x00600\x00"):
                assert other.poll() is None
            assert other.pid not in running()
            assert end_all() == {}
            assert other.poll() is None
        finally:
            other.kill()


def test_the_one_who_asks_is_not_among_them() -> None:
    environment = {**os.environ, VARIABLE: str(ROOT)}
    command = [sys.executable, "-m", "orchestrator.cluster.ray_processes", "--end"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `ray up` leaves it on a head."""
    for name in (*BOOTSTRAP, ".ray/auth_token", ".ssh/id_ed25519", "tmp/ray/cluster-qlora.state"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "tmp"))
    return tmp_path


@pytest.mark.parametrize("is_copied", [True, False])
def test_what_was_copied_is_removed_and_nothing_else(home: Path, is_copied: bool) -> None:
    token = hashlib.sha256(b".ray/auth_token" if is_copied else b"the cluster's").hexdigest()
    assert main(["--forget", "qlora", token]) == 0
    left = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert left == {".ssh/id_ed25519"} | (set() if is_copied else {".ray/auth_token"})


def test_the_address_of_a_cluster_that_has_gone_is_forgotten(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (home / "tmp/ray/ray_current_cluster").write_text(address)
        end_all()
        assert (home / "tmp/ray/ray_current_cluster").exists()  # somebody's that goes on
    end_all()
    assert not (home / "tmp/ray/ray_current_cluster").exists()


def test_a_file_that_is_no_cluster_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cluster.yaml").write_text("cluster_name: qlora\n")
    assert shutdown.main([str(tmp_path / "cluster.yaml")]) == 2
    assert "no cluster's configuration" in capsys.readouterr().err
