"""Processes of this project's Ray cluster on this machine: lists them, and ends them.

python -m orchestrator.cluster.ray_processes [--end] [--forget NAME TOKEN]

Prints a process a line. --end kills them first, and prints those still there. --forget removes what `ray up` has copied
here for the cluster NAME: the key, its configuration, and the token, if TOKEN is its SHA-256 in hexadecimal.

The cluster is the one whose Ray this user started with `scripts/ray_environment.sh` of this folder. That script sets a
variable in the environment of all processes under it. Other Rays on the machine are left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from orchestrator.ray_setup.address import forget_dead_cluster
from orchestrator.ray_setup.folder import named_base
from trials.system.processes import is_alive

VARIABLE = "QLORA_CLUSTER"
ROOT = Path(__file__).resolve().parents[2]
BOOTSTRAP = ("ray_bootstrap_key.pem", "ray_bootstrap_config.yaml")
"""Files that Ray puts into the head's home."""
_END_SECONDS = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a process is still there, else 0."""
    arguments = argparse.ArgumentParser(
        prog="python -m orchestrator.cluster.ray_processes", description="The cluster here."
    )
    arguments.add_argument("--end", action="store_true", help="kill them")
    arguments.add_argument("--forget", nargs=2, metavar=("NAME", "TOKEN"), help="remove what was copied here for them")
    given = arguments.parse_args(argv)
    left = end_all() if given.end else running()
    if given.forget:
        forget(*given.forget)
    for pid, command in left.items():
        print(pid, command[:100])
    return int(bool(left))


def running() -> Mapping[int, str]:
    """Return the command lines of the cluster's processes, by process id."""
    attributes = ["cmdline", "environ", "ppid", "uids"]
    there = {process.pid: process.info for process in psutil.process_iter(attributes)}
    ours = {pid for pid, known in there.items() if _is_marked(known)}
    # Children count too, because a process that gives itself a title overwrites its environment with it.
    while more := {pid for pid, known in there.items() if known["ppid"] in ours} - ours:
        ours |= more
    pid, own_line = os.getpid(), set[int]()
    while pid in there and pid not in own_line:  # `psutil.Process.parents` compares times of the system's clock
        own_line.add(pid)
        pid = there[pid]["ppid"]
    return {pid: " ".join(there[pid]["cmdline"] or ()) for pid in ours - own_line if is_alive(pid)}


def end_all(seconds: float = _END_SECONDS) -> Mapping[int, str]:
    """Kill the cluster's processes, and those that they start meanwhile; return those left after `seconds`."""
    ends = time.monotonic() + seconds
    while (left := running()) and time.monotonic() < ends:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    forget_dead_cluster()
    return left


def forget(name: str, token_sha256: str) -> None:
    """Remove what was copied here for a cluster; errors are ignored."""
    home = Path.home()
    token = home / ".ray" / "auth_token"
    with suppress(OSError):
        if hashlib.sha256(token.read_bytes()).hexdigest() == token_sha256:
            token.unlink()
    for path in (*(home / file for file in BOOTSTRAP), *state_files(name)):
        with suppress(OSError):
            path.unlink()


def state_files(name: str) -> list[Path]:
    """Return the paths of the files in which Ray keeps, on this machine, which machines a cluster has."""
    folder = named_base()[1] / "ray"
    return [folder / f"cluster-{name}.{ending}" for ending in ("state", "lock")]


def _is_marked(known: Mapping[str, Any]) -> bool:
    """Return whether a process is this user's and has the cluster's variable."""
    environment = known["environ"] or {}  # None: it can't be read
    return environment.get(VARIABLE) == str(ROOT) and known["uids"].effective == os.geteuid()


if __name__ == "__main__":
    sys.exit(main())
