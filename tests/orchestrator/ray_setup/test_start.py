"""What Ray finds in its environment while a search runs, and afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.services import canonicalize_bootstrap_address

from orchestrator.ray_setup.start import instead_of_home, surroundings
from tests.support.cli import ROOT, environment


@pytest.fixture
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither RAY_ADDRESS nor a mode; a home, and a folder for Ray's address files."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path


def test_ray_does_not_join_what_the_search_did_not_look_at(nothing_said: Path) -> None:
    file = nothing_said / "ray" / "ray_current_cluster"
    (nothing_said / "elsewhere").write_text("10.0.0.1:6379")
    file.symlink_to(nothing_said / "elsewhere")
    assert canonicalize_bootstrap_address(None) == "10.0.0.1:6379"  # as Ray would
    before = dict(os.environ)
    with surroundings():
        assert canonicalize_bootstrap_address(None) is None
        assert canonicalize_bootstrap_address("auto") is None
        folder = Path(os.environ["RAY_TMPDIR"])
        assert folder.is_dir()
    assert not folder.exists()
    assert dict(os.environ) == before


def test_ray_joins_the_address_that_was_looked_at_whatever_comes_later(nothing_said: Path) -> None:
    file = nothing_said / "ray" / "ray_current_cluster"
    file.write_text("10.0.0.1:6379")
    with surroundings():
        file.write_text("10.0.0.2:6379")
        assert canonicalize_bootstrap_address(None) == "10.0.0.1:6379"


def test_an_address_that_was_named_stays(nothing_said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.3:6379")
    token = nothing_said / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("shared")
    token.chmod(0o644)
    with surroundings():
        assert canonicalize_bootstrap_address(None) == "10.0.0.3:6379"
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert token.stat().st_mode & 0o777 == 0o600


def test_libraries_write_elsewhere_where_the_home_cannot_be_written(tmp_path: Path) -> None:
    assert instead_of_home(tmp_path, {"HOME": str(tmp_path)}) == {}
    for_trials = instead_of_home(tmp_path, {"HOME": "/proc/nobody", "WANDB_CACHE_DIR": "/mine"})
    assert for_trials["WANDB_CACHE_DIR"] == "/mine"
    assert for_trials["TRITON_CACHE_DIR"].startswith(str(tmp_path))
    kept = instead_of_home(tmp_path, {"HOME": "/proc/nobody", "HF_HOME": "/caches"})
    assert all(path.startswith("/caches/") for path in kept.values())


ADDRESS = """
from orchestrator.ray_setup.start import stay_on_loopback
stay_on_loopback()
import ray
print(ray.util.get_node_ip_address())
"""


@pytest.mark.parametrize("given", [None, "1"])
def test_ray_listens_on_loopback_unless_told_otherwise(given: str | None) -> None:
    variables = {} if given is None else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": given}
    command = [sys.executable, "-c", ADDRESS]
    done = subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, check=True)
    without = "import ray; print(ray.util.get_node_ip_address())"
    usual = subprocess.run([sys.executable, "-c", without], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == (usual.stdout if given else "127.0.0.1\n")
