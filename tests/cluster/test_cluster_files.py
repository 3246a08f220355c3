"""cluster.yaml and its variants, by Ray's own validator, and what is the same in all of them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.fake_cluster import played
from tests.cluster.namespaces import Host
from tests.support.cli import ROOT

FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "docs/clusters").glob("*.yaml"))]
OURS = [path for path in FILES if path.stem != "docker"]
"""In an image the project is there already."""


def read(path: Path) -> Mapping[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_there_is_a_file_for_machines_a_cloud_and_docker() -> None:
    assert [path.stem for path in FILES] == ["cluster", "aws", "docker"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_takes_it(path: Path) -> None:
    validate_config(prepare_config(dict(read(path))))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_would_refuse_a_key_that_it_does_not_know(path: Path) -> None:
    with pytest.raises(ValidationError, match="worker_ip"):
        validate_config(prepare_config({**read(path), "worker_ip": "192.168.1.11"}))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_machine_starts_ray_in_the_same_environment(path: Path) -> None:
    config = read(path)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        stop, start = commands
        # `ray stop` would end every Ray of that user.
        assert re.fullmatch(
            r"cd (~/qlora-orchestrator|/app) && .venv/bin/python -m orchestrator.cluster.ray_processes --end", stop
        )
        assert re.match(r"\. \S+/scripts/ray_environment.sh && ray start ", start)
        assert "$node_options" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_key_is_one_for_the_cluster_alone(path: Path) -> None:
    key = read(path)["auth"].get("ssh_private_key")
    assert key == (None if path.stem == "aws" else "~/.ssh/qlora_cluster")  # on AWS Ray makes one
    if key is not None:
        assert f"-f {key}" in (ROOT / "docs/cluster.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_setting_is_commented(path: Path) -> None:
    """Above a block or beside a line; what a file takes over as it is, is commented where it comes from."""
    explained = set(read(ROOT / "cluster.yaml")) if path.stem != "cluster" else set()
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if (key := re.match(r"([a-z_]+):", line)) and key[1] not in explained:
            block = [line, *(later for later in lines[number + 1 :][:8] if later.startswith(" "))]
            assert lines[number - 1].startswith("#") or any(" # " in each for each in block), key[1]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_all_that_the_setup_needs_is_sent(path: Path) -> None:
    mounts = read(path)["file_mounts"]
    sent = {there: here for there, here in mounts.items() if not here.startswith("~")}
    assert all(there == f"~/qlora-orchestrator/{here}" for there, here in sent.items())
    assert all((ROOT / here).exists() for here in sent.values())
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix("*") for name in packages} <= set(sent.values())


def test_what_is_played_is_the_real_file_but_for_addresses_key_and_cpus(tmp_path: Path) -> None:
    head, worker = (SimpleNamespace(address=f"10.77.0.{number}") for number in (2, 3))
    real = read(ROOT / "cluster.yaml")
    config = played(real, cast(Host, head), [cast(Host, worker)], tmp_path / "key", tmp_path)
    validate_config(prepare_config(dict(config)))
    assert config["provider"] == {"type": "local", "head_ip": "10.77.0.2", "worker_ips": ["10.77.0.3"]}
    assert config["file_mounts"] == {**real["file_mounts"], "~/.ray/auth_token": f"{tmp_path}/.ray/auth_token"}
    for name in real.keys() - {"provider", "auth", "file_mounts"}:
        assert re.sub(r" --num-cpus=[01]", "", str(config[name])) == str(real[name])


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with the project, as on a machine of the cluster; `hostname -I` says what ADDRESSES does."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / ".venv/bin/hostname").write_text("#!/bin/sh\necho $ADDRESSES\n")
    (tmp_path / ".venv/bin/hostname").chmod(0o755)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    return tmp_path


def environment_of(machine: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What bash on a machine makes of scripts/ray_environment.sh."""
    printed = " && ".join(f"echo ${name}" for name in ("node_options", "RAY_AUTH_MODE", "PATH", "QLORA_CLUSTER"))
    script = f". {machine}/scripts/ray_environment.sh && {printed}"
    path = {"HOME": str(machine), "PATH": "/usr/bin:/bin", "ADDRESSES": "192.168.1.10 10.0.0.3 fd00::10"}
    return subprocess.run(
        ["bash", "-c", script], env={**path, **environment}, capture_output=True, text=True, check=False
    )


def test_ray_listens_where_ssh_reached_the_machine(machine: Path) -> None:
    done = environment_of(machine, SSH_CONNECTION="192.168.1.2 50000 10.0.0.3 22")
    options, mode, path, cluster = done.stdout.splitlines()
    assert "--node-ip-address=10.0.0.3 " in options
    assert cluster == str(machine)
    assert mode == "token"
    assert path.split(":")[0] == str(machine / ".venv/bin")
    assert "--node-ip-address=192.168.1.10 " in environment_of(machine).stdout  # in a container
    assert "--node-ip-address=10.1.1.1 " in environment_of(machine, NODE_ADDRESS="10.1.1.1").stdout


def test_the_token_is_readable_for_its_owner_alone(machine: Path) -> None:
    (machine / ".ray").mkdir(mode=0o755)
    (machine / ".ray/auth_token").touch(mode=0o644)
    assert environment_of(machine).returncode == 0
    assert [(machine / name).stat().st_mode & 0o777 for name in (".ray", ".ray/auth_token")] == [0o700, 0o600]


@pytest.mark.parametrize("public", ["8.8.8.8", "2a00:1450:4001::200e"])
def test_ray_does_not_start_on_a_public_address_unless_asked(machine: Path, public: str) -> None:
    refused = environment_of(machine, ADDRESSES=f"192.168.1.10 {public}")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"public address {public}, and Ray would listen on it" in refused.stderr
    asked = environment_of(machine, ADDRESSES=f"192.168.1.10 {public}", BEHIND_FIREWALL="yes")
    assert "--node-ip-address=192.168.1.10 " in asked.stdout
