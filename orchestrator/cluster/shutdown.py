"""Ends a cluster, checks on every machine that nothing of it is left, and removes what was copied there for it.

scripts/down [cluster.yaml]

`ray down` ends machines that it has rented, and containers. On premises it would run `ray stop` on the head, which ends
every Ray of that user, and nothing on the workers. So there the cluster's own processes are killed on every machine,
over SSH through the head. The key, the configuration and the token that `ray up` has copied are removed; the project's
folder stays.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.cluster.access import FOLDER, RAY, read_cluster
from orchestrator.cluster.ray_processes import state_files
from orchestrator.ray_setup.token import token_path
from trials.cli import run_command
from trials.errors import EXIT_DONE

_LEFT = 1
_CONNECT_SECONDS = 15
_SSH_FAILED = 255


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if something is left, or if a machine can't be reached."""
    arguments = argparse.ArgumentParser(prog="scripts/down", description="End a cluster that `ray up` has started.")
    arguments.add_argument("cluster", nargs="?", type=Path, default=Path("cluster.yaml"), help="default: %(default)s")
    return run_command(lambda: _end(arguments.parse_args(argv).cluster))


def _end(path: Path) -> int:
    config = read_cluster(path)
    if config["provider"]["type"] != "local" or "docker" in config:
        return subprocess.run([RAY, "down", "--yes", str(path)], check=False, stdout=sys.stderr).returncode
    # The head first: Ray's autoscaler there would start again what is ended elsewhere.
    machines = [config["provider"]["head_ip"], *config["provider"]["worker_ips"]]
    with _kept(token_path()) as sha256:
        problems = [problem for machine in machines if (problem := _end_on(machine, config, sha256)) is not None]
    if not problems:
        for file in state_files(config["cluster_name"]):
            file.unlink(missing_ok=True)
    print("\n".join(problems) or f"nothing of it is left on {len(machines)} machines: {', '.join(machines)}")
    return _LEFT if problems else EXIT_DONE


@contextmanager
def _kept(token: Path) -> Iterator[str]:
    """Yield the SHA-256 of this machine's token; restore the token if this is a machine of the cluster."""
    content = token.read_bytes() if token.is_file() else b""
    yield hashlib.sha256(content).hexdigest()
    if content and not token.exists():
        with os.fdopen(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(content)


def _end_on(machine: str, config: Mapping[str, Any], token_sha256: str) -> str | None:
    """End the cluster on one machine; return why that failed, in a sentence. None: it is ended."""
    forget = f"--forget {shlex.quote(config['cluster_name'])} {token_sha256}"
    command = f"cd {FOLDER} && .venv/bin/python -m orchestrator.cluster.ray_processes --end {forget}"
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
    """Return the SSH command to a machine; to a worker through the head, as only the head need reach it."""
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
