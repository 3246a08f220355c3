"""Access from this machine to a cluster that `ray up` has started: its configuration and its dashboard."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from orchestrator.ray_setup.token import mend_token
from trials.errors import InputError

FOLDER = "~/qlora-orchestrator"
"""Folder of the project on every machine of the cluster, as in cluster.yaml."""
RAY = str(Path(sys.executable).with_name("ray"))
"""Path of Ray's command line, beside the Python that runs this."""
DASHBOARD_PORT = 8265
_TUNNEL_SECONDS = 60.0


def read_cluster(path: Path) -> Mapping[str, Any]:
    """Return a cluster's configuration. Raises `InputError` if the file is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path} can't be read: {error}. Give the file that `ray up` was given.") from error
    if not isinstance(content, dict) or "provider" not in content:
        raise InputError(f"{path} is no cluster's configuration. Give the file that `ray up` was given.")
    return content


@contextmanager
def tunnel(cluster: Path) -> Iterator[str]:
    """Yield the dashboard's address on this machine, to which `ray dashboard` forwards it over SSH.

    Raises `InputError` if that can't be done.
    """
    read_cluster(cluster)
    mend_token()  # Ray makes it readable for all users
    port = _free_port()
    command = [RAY, "dashboard", "--port", str(port), "--remote-port", str(DASHBOARD_PORT), str(cluster)]
    # In a session of its own, which Ctrl-C in a terminal doesn't reach, and which can be ended as one.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        _wait_for(process, port, cluster)
        yield f"http://127.0.0.1:{port}"
    finally:
        _end(process)


def _wait_for(process: subprocess.Popen[bytes], port: int, cluster: Path) -> None:
    ends = time.monotonic() + _TUNNEL_SECONDS
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > ends:
            _end(process)
            said = process.stdout.read().decode(errors="replace").strip().splitlines() if process.stdout else []
            raise InputError(
                f"the dashboard of {cluster} can't be reached: {said[-1] if said else 'no answer'}. Is the cluster up "
                f"(`ray up {cluster}`), and does SSH reach its head?"
            )
        time.sleep(0.2)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=5)
    except urllib.error.HTTPError:  # it answers, and asks for a token
        return True
    except (OSError, urllib.error.URLError):
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
