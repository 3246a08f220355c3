"""Machines that aren't there: hosts with an address, a home and an SSH server each, all on this one machine.

Each is a set of Linux namespaces (network, processes, mounts, host name), joined by a bridge. All of them live inside
namespaces of this process, made by `enter`: whatever ends it takes everything along that was made here. Needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.77.0"
OPERATOR_ADDRESS = f"{NETWORK}.1"
"""Of the machine that isn't in the cluster, from which it's started."""
_INSIDE = "INSIDE_NAMESPACES"
_TOOLS = ("unshare", "ip", "sshd", "ssh", "ssh-keygen", "rsync")
_NAMESPACES = ("--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc")
_SSHD_SECONDS = 60.0


def why_not_here() -> str | None:
    """Why this machine can't play several, in a sentence; None: it can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces take Linux and root"
    if missing:
        return f"{', '.join(missing)} missing: apt-get install openssh-server openssh-client rsync iproute2"
    probe = ["unshare", *_NAMESPACES, "ip", "link", "add", "probe", "type", "veth", "peer", "name", "other"]
    allowed = subprocess.run(probe, check=False, capture_output=True)
    return None if allowed.returncode == 0 else f"namespaces aren't allowed: {allowed.stderr.decode().strip()}"


def are_entered() -> bool:
    """Whether this process is inside already."""
    return _INSIDE in os.environ


def enter(module: str, arguments: Sequence[str]) -> int:
    """Runs `python -m module` inside namespaces of its own; returns its exit code."""
    command = ["unshare", *_NAMESPACES, sys.executable, "-m", module, *arguments]
    return subprocess.run(command, check=False, env={**os.environ, _INSIDE: "yes"}).returncode


@dataclass(frozen=True)
class Host:
    """One machine. `base` holds what is its own: its home, Ray's temporary folder."""

    name: str
    address: str
    base: Path
    process: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        """Of whoever logs in."""
        return self.base / "home"

    def cut(self) -> None:
        """Drops its link: no packet comes or goes any more, and nobody is told."""
        _ip("link", "set", self.name, "down")

    def restore(self) -> None:
        """Puts its link up again."""
        _ip("link", "set", self.name, "up")

    def has(self, name: str) -> bool:
        """Whether a process runs there whose command begins so."""
        return any(line.split(maxsplit=1)[1].startswith(name) for line in self.processes())

    def kill_raylet(self) -> None:
        """Kills Ray's daemon by its process id, as a crash would."""
        self.run("kill", "-KILL", *self.run("pgrep", "-x", "raylet").split())

    def run(self, *command: str) -> str:
        """What a command prints that runs on this machine, whether its link is up or not."""
        inside = ["nsenter", "--target", str(self._init), "--all"]
        return subprocess.run([*inside, *command], check=True, capture_output=True, text=True, encoding="utf-8").stdout

    def processes(self) -> list[str]:
        """Process id and command of all that runs there, apart from the SSH server and the sessions that it holds."""
        lines = (line.strip() for line in self.run("ps", "-e", "-o", "pid=,args=").splitlines())
        return [line for line in lines if not line.split(maxsplit=1)[1].startswith(("sshd:", "ps -e"))]

    def end(self) -> None:
        """Ends the machine and all that runs there."""
        self.process.kill()
        self.process.wait()

    @property
    def _init(self) -> int:
        """Its first process: `unshare` has no other child."""
        return int(
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="utf-8").split()[0]
        )


def make_network() -> None:
    """The bridge that joins all hosts, and this side's address on it."""
    for path in ("/run/netns", "/tmp/ray"):
        # What `ip` knows of namespaces, and Ray of clusters. Nobody else sees these mounts, and they go with the rest.
        Path(path).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    _ip("link", "set", "lo", "up")
    _ip("link", "add", "bridge", "type", "bridge")
    _ip("address", "add", f"{OPERATOR_ADDRESS}/24", "dev", "bridge")
    _ip("link", "set", "bridge", "up")


def make_key(folder: Path) -> Path:
    """A key pair to log in with, and for servers to be known by; returns the private one's path."""
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key


def make_host(name: str, number: int, folder: Path, key: Path) -> Host:
    """A machine with the address NETWORK.number, whose SSH server lets the key in as root; up when this returns."""
    address, base = f"{NETWORK}.{number}", folder / name
    for inner in ("home", "ray"):
        (base / inner).mkdir(parents=True)
    (base / "home/.bashrc").touch()
    (base / "passwd").write_text(
        f"root:x:0:0:root:{base / 'home'}:/bin/bash\nsshd:x:101:65534::/run/sshd:/bin/false\n", encoding="utf-8"
    )
    (base / "sshd_config").write_text(
        f"ListenAddress {address}\nHostKey {key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nPidFile none\nLogLevel ERROR\nMaxStartups 100\n",
        encoding="utf-8",
    )
    _ip("netns", "add", name)
    _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", name, "master", "bridge", "up")
    for words in (("link", "set", "lo", "up"), ("address", "add", f"{address}/24", "dev", "eth0")):
        _ip("-n", name, *words)
    _ip("-n", name, "link", "set", "eth0", "up")
    host = Host(name, address, base, _start(name, base))
    _wait_for_ssh(host, key)
    return host


def _start(name: str, base: Path) -> subprocess.Popen[bytes]:
    setup = (
        f"hostname {name} && mount -t tmpfs tmpfs /dev/shm && mount --bind {base}/ray /tmp/ray && "
        f"mount --bind {base}/passwd /etc/passwd && mkdir -p /run/sshd && "
        f"exec {shutil.which('sshd')} -D -e -f {base}/sshd_config"
    )
    namespaces = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--mount-proc"]
    return subprocess.Popen(["ip", "netns", "exec", name, *namespaces, "bash", "-c", setup])


def _wait_for_ssh(host: Host, key: Path) -> None:
    ends = time.monotonic() + _SSHD_SECONDS
    options = ["-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    command = ["ssh", *options, f"root@{host.address}", "true"]
    while (done := subprocess.run(command, check=False, capture_output=True)).returncode:
        if time.monotonic() > ends:
            raise RuntimeError(f"no SSH server answers on {host.name}: {done.stderr.decode().strip()}")
        time.sleep(0.2)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
