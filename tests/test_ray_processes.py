"""What scripts/down looks for on a machine, and what it says where it can't look."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import end_cluster
from scripts.ray_processes import running


@pytest.fixture(params=["ray::Engine", "sleep -m orchestrator.search", "/x/site-packages/ray/dashboard.py"])
def of_ray(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A process that goes by such a name."""
    process = subprocess.Popen(["bash", "-c", f"exec -a '{request.param}' sleep 600"])
    yield process
    process.kill()
    process.wait()


def test_it_is_found_by_its_command_line_while_it_runs(of_ray: subprocess.Popen[bytes]) -> None:
    while not Path(f"/proc/{of_ray.pid}/cmdline").read_bytes().endswith(b"\x00600\x00"):
        assert of_ray.poll() is None
    assert of_ray.pid in running()
    of_ray.kill()
    of_ray.wait()
    assert of_ray.pid not in running()


def test_others_are_left_alone() -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            assert other.pid not in running()
        finally:
            other.kill()


def test_a_file_that_is_no_cluster_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cluster.yaml").write_text("cluster_name: qlora\n")
    assert end_cluster.main([str(tmp_path / "cluster.yaml")]) == 2
    assert "no cluster's configuration" in capsys.readouterr().err
