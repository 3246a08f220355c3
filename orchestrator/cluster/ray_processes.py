"""Processes of this project's Ray cluster on this machine: lists them, and ends them.

python -m orchestrator.cluster.ray_processes [--end] [--forget NAME TOKEN]

Prints a process a line. --end kills them first, and prints those still there. --forget removes what `ray up` has copied
here for the cluster NAME: the key, its configuration, and the token, if TOKEN is its SHA-256 in hexadecimal.

The cluster is the one whose Ray this user started with `scripts/ray_environment.sh` of this folder. That script sets a
variable in the environment of all processes under it. Other Rays on the machine are left alone. Linux only.
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

from orchestrator.ray_setup.address import forget_dead_cluster
from orchestrator.ray_setup.folder import named_base
from trials.system.processes import Process, processes

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
    there = {process.pid: process for process in processes()}
    ours = {pid for pid in there if _is_marked(pid)}
    # Children count too, because a process that gives itself a title may overwrite its environment with it.
    while more := {pid for pid, process in there.items() if process.parent in ours} - ours:
        ours |= more
    return {pid: _command(pid) for pid in ours - _own_line(there)}


def end_all(seconds: float = _END_SECONDS) -> Mapping[int, str]:
    """Kill the cluster's processes, and those that they start meanwhile; return those left after `seconds`."""
    ends = time.monotonic() + seconds
    while (left := running()) and time.monotonic() < ends:
        for pid in left:
            _kill(pid)
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


def _is_marked(pid: int) -> bool:
    """Return whether a process has the cluster's variable.

    False for other users' processes, whose environment can't be read, and for those that have ended.
    """
    path = Path(f"/proc/{pid}")
    try:
        if path.stat().st_uid != os.geteuid():
            return False
        return f"{VARIABLE}={ROOT}".encode() in (path / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _own_line(there: Mapping[int, Process]) -> set[int]:
    """Return the ids of this process and its ancestors."""
    line, pid = set(), os.getpid()
    while pid in there and pid not in line:
        line.add(pid)
        pid = there[pid].parent
    return line


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
