"""Checks that the machines of a cluster agree in versions, clocks and W&B settings. Imports no Ray."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.preflight.gpus import WITHOUT_P2P, driver_checks
from orchestrator.state.check_result import CheckResult, Severity
from orchestrator.state.search_file import versions
from trials.config import TrackingSettings
from trials.system.gpus import Driver, driver_here
from trials.tracking.trial_run import wandb_is_wanted

_CODE = ("orchestrator", "search_spaces", "trials")
_DECISIVE = ("code", "ray", "python")
_COMPARED = (*_DECISIVE, "torch", "transformers", "peft", "bitsandbytes")
_CLOCK_SECONDS = 1.0
"""Allowed clock offset in seconds; a trial stops at the end of training by its machine's clock."""
_FULL = 0.95
"""Share of a disk above which Ray puts no more objects on it."""


@dataclass(frozen=True)
class NodeReport:
    """Report of a machine about itself."""

    host: str
    versions: Mapping[str, str]
    """Versions of Python and libraries, and under `code` a digest of this project's sources."""
    driver: Driver | str | None
    """Return value of `trials.system.gpus.driver_here`."""
    disk_used: float
    """Used share of the disk with Ray's temporary files."""
    logs_to_wandb: bool
    nccl: Mapping[str, str] = field(default_factory=dict)
    """Those of its environment variables `orchestrator.preflight.gpus.WITHOUT_P2P` that are set."""


@dataclass(frozen=True)
class ClockOffset:
    """Clock of a machine relative to this machine's, in seconds; the error is at most half the round trip."""

    ahead: float
    round_trip: float


def this_node() -> NodeReport:
    """Return the report of this machine."""
    disk = shutil.disk_usage(os.environ.get("RAY_TMPDIR", "/tmp"))
    found = {**versions(), "python": platform.python_version(), "code": _code()}
    wants_wandb = wandb_is_wanted(TrackingSettings())
    nccl = {name: os.environ[name] for name in WITHOUT_P2P if name in os.environ}
    return NodeReport(socket.gethostname(), found, driver_here(), 1 - disk.free / disk.total, wants_wandb, nccl)


def node_checks(
    here: NodeReport, nodes: Mapping[str, NodeReport], gpus_per_trial: int, least_gib: float | None
) -> list[CheckResult]:
    """Check the reports of all `nodes`, by name, against `here`, the machine on which the search's own process runs."""
    found = _version_checks(here, nodes)
    for name, node in nodes.items():
        if node.disk_used > _FULL:
            text = f"the disk with Ray's temporary files is {node.disk_used:.0%} full".replace("%", " %")
            found.append(CheckResult(name, Severity.WARNING, text, "Make room, or start Ray with another --temp-dir"))
        if node.logs_to_wandb != here.logs_to_wandb:
            text = f"{'has' if node.logs_to_wandb else 'has no'} W&B key or mode, other than this machine"
            remedy = "Set WANDB_API_KEY or WANDB_MODE alike before ray start: trials log from where they run"
            found.append(CheckResult(name, Severity.WARNING, text, remedy))
        of_gpus = driver_checks(node.driver, gpus_per_trial, least_gib, node.nccl)
        found += [CheckResult(f"{name} {one.name}", one.level, one.text, one.remedy) for one in of_gpus]
    return found


def clock_checks(clocks: Mapping[str, ClockOffset]) -> list[CheckResult]:
    """Return one result for all nodes whose clock is right, and one for each other node."""
    off = {name: clock for name, clock in clocks.items() if abs(clock.ahead) - clock.round_trip / 2 > _CLOCK_SECONDS}
    found = [
        CheckResult(
            f"{name} clock",
            Severity.WARNING,
            f"{abs(clock.ahead):.1f} s {'ahead' if clock.ahead > 0 else 'behind'} (round trip {_ms(clock)} ms)",
            f"Set it by a time server (timedatectl set-ntp true): trials there end their training so much "
            f"{'too early' if clock.ahead > 0 else 'too late'}",
        )
        for name, clock in off.items()
    ]
    right = [clock for name, clock in clocks.items() if name not in off]
    if right:
        most = max(abs(clock.ahead) + clock.round_trip / 2 for clock in right)
        trips = sorted(float(_ms(clock)) for clock in right)
        text = f"{len(right)} within {most:.3f} s of this one; round trips {trips[0]:g} to {trips[-1]:g} ms"
        found.append(CheckResult("clocks", Severity.OK, text))
    return found


def _version_checks(here: NodeReport, nodes: Mapping[str, NodeReport]) -> list[CheckResult]:
    found = []
    for name, node in nodes.items():
        others = {key for key in _COMPARED if node.versions.get(key) != here.versions.get(key)}
        if others:
            pairs = [f"{key} {node.versions.get(key, 'none')}" for key in _COMPARED if key in others]
            expected = [f"{here.versions.get(key, 'none')}" for key in _COMPARED if key in others]
            text = f"{', '.join(pairs)}; here {', '.join(expected)}"
            level = Severity.IMPOSSIBLE if others & set(_DECISIVE) else Severity.WARNING
            found.append(
                CheckResult(f"{name} versions", level, text, "Install the same on every machine: scripts/setup")
            )
    if not found and nodes:
        said = ", ".join(f"{key} {here.versions[key]}" for key in _COMPARED if key in here.versions)
        found.append(CheckResult("versions", Severity.OK, f"alike on {len(nodes)} nodes: {said}"))
    return found


def _code() -> str:
    """Return a digest of all sources of this project that this process would import."""
    root, digest = Path(__file__).parent.parent.parent, hashlib.sha256()
    for file in sorted(path for package in _CODE for path in (root / package).rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def _ms(clock: ClockOffset) -> str:
    return f"{clock.round_trip * 1e3:.1f}"
