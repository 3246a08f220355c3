"""The cluster of `tests.cluster.run`: cluster.yaml on machines that are namespaces, and what users call."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

from orchestrator.cluster.access import RAY, read_cluster
from tests.cluster.namespaces import Host, make_host, make_key, make_network
from tests.support.cli import ROOT

_BEGAN = time.monotonic()
_OF_RAY = ("RAY_", "PYTHONPATH")


def say(text: str) -> None:
    """One line of the story, with the seconds since it began."""
    print(f"{time.monotonic() - _BEGAN:5.0f} s  {text}", flush=True)


class PlayedCluster:
    """A head without CPUs for trials, and two workers with one each; `folder` is seen by all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        """Lines of the search that was submitted."""
        self._operator = folder / "operator"
        self._config = folder / "cluster.yaml"
        self._operator.mkdir()
        (folder / "runs").mkdir()
        make_network()
        self._key = make_key(folder)
        self.head = make_host("head", 2, folder, self._key)
        self.workers = [make_host(name, number, folder, self._key) for name, number in (("w1", 3), ("w2", 4))]
        for host in self._hosts:
            # As if scripts/setup had installed it there: it does nothing then, and needs no network.
            (host.home / "qlora-orchestrator").mkdir()
            (host.home / "qlora-orchestrator/.venv").symlink_to(ROOT / ".venv")

    @property
    def _hosts(self) -> list[Host]:
        return [self.head, *self.workers]

    def start(self) -> None:
        """`ray up`. Its output is in ray-up.log."""
        self._call(RAY, "get-auth-token", "--generate")
        config = played(read_cluster(ROOT / "cluster.yaml"), self.head, self.workers, self._key, self._operator)
        self._config.write_text(yaml.safe_dump(config), encoding="utf-8")
        began = time.monotonic()
        (self.folder / "ray-up.log").write_text(
            self._call(RAY, "up", "--yes", "--no-config-cache", str(self._config)), encoding="utf-8"
        )
        say(f"ray up cluster.yaml: {time.monotonic() - began:.0f} s")

    def alive(self) -> list[str]:
        """Addresses of the machines that are in the cluster."""
        command = "import ray; ray.init(log_to_driver=False, logging_level='ERROR'); "
        command += "print(*[node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']])"
        environment = ["env", f"HOME={self.head.home}", "RAY_ADDRESS=auto", "RAY_AUTH_MODE=token"]
        return self.head.run(*environment, sys.executable, "-c", command).split()

    def submit(self, options: Sequence[str]) -> tuple[subprocess.Popen[str], str]:
        """`scripts/submit`, and the job's name; what it says follows here, each line marked."""
        search = subprocess.Popen(
            self._submit(options), cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert search.stdout is not None
        job = search.stdout.readline().split()[1]
        threading.Thread(target=self._listen, args=(search.stdout,), daemon=True).start()
        return search, job

    def ask_to_stop(self, job: str) -> None:
        """`scripts/submit --stop`."""
        self._call(*self._submit(["--stop", job]))

    def submit_and_wait(self, options: Sequence[str]) -> tuple[int, str]:
        """`scripts/submit`: its exit code, and what it said."""
        command = self._submit(options)
        done = subprocess.run(
            command, check=False, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return done.returncode, done.stdout.decode()

    def stop(self) -> None:
        """`scripts/down`. Raises `CalledProcessError` if that finds something that it can't end."""
        began = time.monotonic()
        said = self._call("scripts/down", str(self._config))
        say(f"scripts/down: {said.strip().splitlines()[-1]}; {time.monotonic() - began:.0f} s")

    def left(self) -> Mapping[str, list[str]]:
        """Processes that are still there, by machine."""
        return {host.name: processes for host in self._hosts if (processes := host.processes())}

    def end(self) -> None:
        """Ends the machines."""
        for host in self._hosts:
            host.end()

    @property
    def _environment(self) -> Mapping[str, str]:
        """Of who starts the cluster, and has a home and a token of their own."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(_OF_RAY)}
        return {**ours, "HOME": str(self._operator), "RAY_AUTH_MODE": "token"}

    def _listen(self, output: TextIO) -> None:
        for line in output:
            self.said.append(line)
            print(f"         | {line}", end="", flush=True)

    def _submit(self, options: Sequence[str]) -> list[str]:
        return ["scripts/submit", "--cluster", str(self._config), *options]

    def _call(self, *command: str) -> str:
        done = subprocess.run(
            command, check=False, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            sys.stderr.write(done.stdout.decode())
            done.check_returncode()
        return done.stdout.decode()


def played(
    config: Mapping[str, Any], head: Host, workers: Sequence[Host], key: Path, operator: Path
) -> Mapping[str, Any]:
    """cluster.yaml with other addresses, key and numbers of CPUs, and the token of the operator's own home."""
    mounts = {there: here.replace("~", str(operator)) for there, here in config["file_mounts"].items()}
    return {
        **config,
        "provider": {"type": "local", "head_ip": head.address, "worker_ips": [worker.address for worker in workers]},
        "auth": {"ssh_user": "root", "ssh_private_key": str(key)},
        "file_mounts": mounts,
        "head_start_ray_commands": _with_cpus(config["head_start_ray_commands"], 0),
        "worker_start_ray_commands": _with_cpus(config["worker_start_ray_commands"], 1),
    }


def _with_cpus(commands: Sequence[str], cpus: int) -> list[str]:
    return [command.replace("ray start", f"ray start --num-cpus={cpus}") for command in commands]
