"""A real search that was given secrets: they are in no file, no command line; and nobody else can reach its Ray."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.cli import ROOT, environment, searcher, small_search
from tests.support.sessions import await_session
from trials.system.processes import session_processes

pytestmark = pytest.mark.slow

SECRETS = {
    name: f"canary-{number}-of-{name.lower()}-{number * 7919}"
    for number, name in enumerate(
        (
            "WANDB_API_KEY",
            "HF_TOKEN",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_SECURITY_TOKEN",
            "OPENAI_API_KEY",
        ),
        start=1,
    )
}


@dataclass(frozen=True)
class Night:
    """What was seen of a search while a trial ran, and what is left of it."""

    code: int
    said: str
    run: Path
    home: Path
    folder: Path
    token: str
    leaks: Mapping[str, list[str]]
    modes: Mapping[str, int]
    addresses: set[str]
    command_lines: list[str]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("canary")
    run, home = folder / "run", folder / "home"
    home.mkdir()
    settings = ["tracking.wandb=true", "search.dashboard=true", *searcher("optuna.samplers:QMCSampler", "none")]
    command = small_search(*settings, "--trials", "1", "--budget", "5m")
    # As a user has it who never set a mode for Ray's token, and no RAY_ADDRESS.
    given = {name: value for name, value in environment(WANDB_MODE="offline").items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [*command, "--out", str(run)],
        cwd=ROOT,
        env={**given, **SECRETS, "HOME": str(home), "RAY_TMPDIR": "/tmp"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "trial 0001 started" in line or "trial probe at" in line:
            break
    try:
        mark = await_session(run)
        temporary = Path(mark["ray_folder"])
        token = home / ".ray" / "auth_token"
        members = [process.pid for process in session_processes(mark["session"])]
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace") for pid in members]
        secrets = {**SECRETS, "Ray's token": token.read_text()}
        leaks = leaks_in(temporary, secrets)
        modes = {str(path): path.stat().st_mode & 0o777 for path in (token, token.parent, temporary)}
        addresses = {address for pid in members for address in listening(pid)}
        rest, _ = process.communicate(timeout=280)
        yield Night(
            process.returncode, said + rest, run, home, temporary, token.read_text(), leaks, modes, addresses, lines
        )
    finally:
        process.kill()
        process.wait()


def leaks_in(folder: Path, secrets: Mapping[str, str]) -> dict[str, list[str]]:
    """Which secrets stand in which files of a folder, in their contents and their names."""
    found: dict[str, list[str]] = {}
    for path in (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        content = path.read_bytes()
        for name, value in secrets.items():
            if value.encode() in content or value in str(path):
                found.setdefault(name, []).append(str(path))
    return found


def listening(pid: int) -> set[str]:
    """Addresses that a process takes connections on."""
    try:
        return {c.laddr.ip for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return set()


def test_the_search_ran_with_its_secrets(night: Night) -> None:
    assert night.code == 0, night.said
    assert list(night.run.glob("trials/0001/wandb/**/*.wandb"))


def test_no_secret_is_in_a_file(night: Night) -> None:
    assert night.leaks == {}
    secrets = {**SECRETS, "Ray's token": night.token}
    assert leaks_in(night.run, secrets) == {}
    allowed = {"Ray's token": [str(night.home / ".ray" / "auth_token")]}
    assert leaks_in(night.home, secrets) == allowed


def test_no_secret_is_in_a_command_line_or_said(night: Night) -> None:
    assert len(night.command_lines) > 5
    for value in (*SECRETS.values(), night.token):
        assert value not in night.said
        assert not [line for line in night.command_lines if value in line]


def test_only_this_user_can_reach_ray(night: Night) -> None:
    modes = {Path(path).name: oct(mode) for path, mode in night.modes.items()}
    assert modes == {"auth_token": "0o600", ".ray": "0o700", night.folder.name: "0o700"}
    assert night.addresses
    assert {address.removeprefix("::ffff:") for address in night.addresses} == {"127.0.0.1"}


def test_ray_s_temporary_folder_is_gone(night: Night) -> None:
    assert not night.folder.exists()
