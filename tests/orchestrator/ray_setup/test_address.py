"""Which Ray a search joins, said before it waits for one that isn't there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.services import canonicalize_bootstrap_address

from orchestrator.ray_setup.address import address_check, named_cluster
from orchestrator.state.check_result import Severity


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of this machine at which somebody answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def silent() -> int:
    """A port at which nobody does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def given(folder: Path, address: str | None = None, in_file: str | None = None) -> dict[str, str]:
    """An environment, with the file that `ray start` leaves."""
    (folder / "ray").mkdir(exist_ok=True)
    if in_file is not None:
        (folder / "ray" / "ray_current_cluster").write_text(in_file)
    return {"RAY_TMPDIR": str(folder)} | ({} if address is None else {"RAY_ADDRESS": address})


@pytest.mark.parametrize(
    ("address", "in_file", "joined"),
    [
        (None, None, None),
        ("local", "10.0.0.1:6379", None),
        ("", "10.0.0.1:6379", "10.0.0.1:6379"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
    ],
)
def test_it_is_found_where_ray_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None, in_file: str | None, joined: str | None
) -> None:
    environ = given(tmp_path, address, in_file)
    assert named_cluster(environ) == joined
    monkeypatch.delenv("RAY_ADDRESS")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert canonicalize_bootstrap_address(None) == joined


def test_without_a_cluster_there_is_nothing_to_say(tmp_path: Path) -> None:
    found = address_check(given(tmp_path))
    assert (found.level, found.remedy) == (Severity.OK, "")
    assert "starts Ray on this machine" in found.text


def test_a_cluster_that_answers_is_fine(tmp_path: Path, listening: int) -> None:
    assert address_check(given(tmp_path, f"127.0.0.1:{listening}")).level is Severity.OK
    here = socket.gethostbyname("localhost")
    assert address_check(given(tmp_path, f"localhost:{listening}", f"{here}:{listening}")).level is Severity.OK


def test_one_that_nobody_answers_for_makes_the_search_impossible(tmp_path: Path, silent: int) -> None:
    found = address_check(given(tmp_path, f"127.0.0.1:{silent}"))
    assert found.level is Severity.IMPOSSIBLE
    assert f"RAY_ADDRESS names 127.0.0.1:{silent}, where nobody answers" in found.text
    left_behind = address_check(given(tmp_path, None, f"127.0.0.1:{silent}"))
    assert left_behind.level is Severity.IMPOSSIBLE
    assert f"{tmp_path}/ray/ray_current_cluster names" in left_behind.text
    assert "RAY_ADDRESS=local" in left_behind.remedy


def test_two_different_ones_are_pointed_out(tmp_path: Path, listening: int) -> None:
    found = address_check(given(tmp_path, f"127.0.0.1:{listening}", "10.0.0.1:6379"))
    assert found.level is Severity.WARNING
    assert "names 10.0.0.1:6379" in found.text


@pytest.mark.parametrize("address", ["http://10.0.0.1:8265", "head", "head:port", "::1:6379"])
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    found = address_check(given(tmp_path, address))
    assert found.level is Severity.IMPOSSIBLE
    assert f"RAY_ADDRESS is {address!r}" in found.text


def foreign(file: Path, kind: str, tmp_path: Path) -> None:
    """Somebody else's address file, in place of this user's."""
    address = file.read_text(encoding="utf-8")
    file.unlink()
    if kind == "another's":
        file.write_text(address, encoding="utf-8")
        os.chown(file, 12345, 12345)
    elif kind == "link":
        (tmp_path / "elsewhere").write_text(address)
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.mkdir()


@pytest.mark.parametrize("kind", ["another's", "link", "fifo", "folder"])
def test_an_address_that_somebody_else_left_is_ignored_and_that_is_said(
    tmp_path: Path, listening: int, kind: str
) -> None:
    if kind == "another's" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    environ = given(tmp_path, None, f"127.0.0.1:{listening}")
    assert named_cluster(environ) == f"127.0.0.1:{listening}"
    foreign(tmp_path / "ray" / "ray_current_cluster", kind, tmp_path)
    assert named_cluster(environ) is None
    found = address_check(environ)
    assert found.level is Severity.WARNING
    assert "ray_current_cluster isn't yours, and is ignored" in found.text
    assert "export RAY_ADDRESS=" in found.remedy


def test_tmpdir_is_where_ray_leaves_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(tmp_path, None, "10.0.0.1:6379")
    assert named_cluster({"TMPDIR": str(tmp_path)}) == "10.0.0.1:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert canonicalize_bootstrap_address(None) == "10.0.0.1:6379"


def test_the_real_environment_is_the_default() -> None:
    assert os.environ["RAY_ADDRESS"] == "local"
    assert named_cluster() is None
