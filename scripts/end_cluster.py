"""Ends a cluster, and looks on every machine whether anything of it is left.

scripts/down [cluster.yaml]

`ray down` ends machines that it has rented. Those on premises it only strikes off its list: it runs `ray stop` on the
head, never on a worker. So here every one of them is asked over SSH, through the head, and what still runs is killed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.cluster_access import FOLDER, RAY, read_cluster
from trials.command_line import run
from trials.errors import EXIT_DONE

_LEFT = 1
_CONNECT_SECONDS = 15
_SSH_FAILED = 255


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if something is left, or a machine can't be asked."""
    arguments = argparse.ArgumentParser(prog="scripts/down", description="End a cluster that `ray up` has started.")
    arguments.add_argument("cluster", nargs="?", type=Path, default=Path("cluster.yaml"), help="default: %(default)s")
    return run(lambda: _end(arguments.parse_args(argv).cluster))


def _end(path: Path) -> int:
    config = read_cluster(path)
    # First of all: Ray ends the searches, and its autoscaler, which would start again what is ended below.
    code = subprocess.run([RAY, "down", "--yes", str(path)], check=False, stdout=sys.stderr).returncode
    if config["provider"]["type"] != "local":
        return code
    machines = [config["provider"]["head_ip"], *config["provider"]["worker_ips"]]
    problems = [problem for machine in machines if (problem := _end_on(machine, config)) is not None]
    print("\n".join(problems) or f"nothing of Ray is left on {len(machines)} machines: {', '.join(machines)}")
    return _LEFT if problems else EXIT_DONE


def _end_on(machine: str, config: Mapping[str, Any]) -> str | None:
    """Kills whatever is left on one machine; what stands in the way of that, in a sentence."""
    command = f"cd {FOLDER} && .venv/bin/python -m scripts.ray_processes --end"
    done = subprocess.run(
        [*_ssh(machine, config), command], check=False, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode == 0:
        return None
    if done.returncode == _SSH_FAILED:
        said = done.stderr.strip().splitlines()
        return f"{machine} can't be asked over SSH: {said[-1] if said else 'no answer'}"
    left = (done.stdout or done.stderr).strip()
    return f"on {machine} is left: {left}"


def _ssh(machine: str, config: Mapping[str, Any]) -> list[str]:
    """SSH to a machine; to a worker through the head, as this machine needn't reach it itself."""
    auth, provider = config["auth"], config["provider"]
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    options += ["-o", f"ConnectTimeout={_CONNECT_SECONDS}", "-o", "BatchMode=yes"]
    if "ssh_private_key" in auth:
        options += ["-i", str(Path(auth["ssh_private_key"]).expanduser()), "-o", "IdentitiesOnly=yes"]
    head = f"{auth['ssh_user']}@{provider.get('external_head_ip') or provider['head_ip']}"
    if machine == provider["head_ip"]:
        proxy = auth.get("ssh_proxy_command")
        return ["ssh", *options, *(["-o", f"ProxyCommand={proxy}"] if proxy else []), head]
    through = " ".join(["ssh", *options, "-W", "%h:%p", head])
    return ["ssh", *options, "-o", f"ProxyCommand={through}", f"{auth['ssh_user']}@{machine}"]


if __name__ == "__main__":
    sys.exit(main())
