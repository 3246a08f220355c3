"""The token's file: made for this user alone, mended where Ray or somebody else has made it, never another's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.ray_setup.token import PATH_VARIABLE, ensure_token, mend_token, private_token


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    return home


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_it_is_made_for_this_user_alone(home: Path, temporary: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        variables = private_token(temporary, {"HOME": str(home)})
    finally:
        os.umask(before)
    token = home / ".ray" / "auth_token"
    assert variables == {PATH_VARIABLE: str(token)}
    assert (mode(token), mode(token.parent), mode(home)) == (0o600, 0o700, 0o755)
    assert len(token.read_text()) == 64
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]
    assert private_token(temporary, {"HOME": str(home)}) == variables
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("how", ["start", "join"])
def test_one_that_others_may_read_is_mended_and_kept(home: Path, temporary: Path, how: str) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir(mode=0o755)
    token.write_text("as it was")
    token.chmod(0o644)
    if how == "start":
        private_token(temporary, {"HOME": str(home)})
    else:
        mend_token({"HOME": str(home)})
    assert (mode(token), mode(token.parent), token.read_text()) == (0o600, 0o700, "as it was")


def test_of_a_named_file_s_folder_nothing_is_changed(home: Path, temporary: Path) -> None:
    token = home / "token"
    token.write_text("named")
    assert private_token(temporary, {"HOME": "/proc/nobody", PATH_VARIABLE: str(token)}) == {PATH_VARIABLE: str(token)}
    assert (mode(token), mode(home)) == (0o600, 0o755)


@pytest.mark.parametrize("nowhere", ["/proc/nobody", "/dev/null"])
def test_where_the_home_cannot_be_written_it_is_in_the_temporary_folder(temporary: Path, nowhere: str) -> None:
    assert private_token(temporary, {"HOME": nowhere}) == {PATH_VARIABLE: str(temporary / "auth_token")}
    assert mode(temporary / "auth_token") == 0o600


def test_an_empty_one_is_none(home: Path, temporary: Path) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").touch()
    assert private_token(temporary, {"HOME": str(home)})[PATH_VARIABLE].startswith(str(temporary))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_else_s_is_not_used(home: Path, temporary: Path) -> None:
    token = home / ".ray" / "auth_token"
    ensure_token(token)
    os.chown(token, 12345, 12345)
    assert private_token(temporary, {"HOME": str(home)})[PATH_VARIABLE].startswith(str(temporary))


@pytest.mark.parametrize("given", [{"RAY_AUTH_TOKEN": "x"}, {"RAY_AUTH_MODE": "disabled"}])
def test_none_is_made_where_none_is_read(home: Path, temporary: Path, given: dict[str, str]) -> None:
    assert private_token(temporary, {"HOME": str(home), **given}) == {}
    assert not list(home.iterdir())
