"""Everything that is looked at before a search, on this machine or on the cluster that it would join."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.planning.memory_bounds import corners
from orchestrator.preflight.all_reduce import measure
from orchestrator.preflight.gpus import all_reduce_findings, driver_findings
from orchestrator.preflight.tracking import tracking_findings
from orchestrator.ray_setup.address import address_finding, named_cluster
from orchestrator.state.check_result import Finding, Level
from orchestrator.state.run_dir import Search
from orchestrator.storage.object_store import is_url
from trials.errors import SearchBroken
from trials.system.gpus import driver_here, gpu_count


def preflight(search: Search, place: str, needed_gib: float | None) -> list[Finding]:
    """All checks. Seconds on a machine by itself; a minute and more where GPUs add up together, or there's a cluster.

    `place` is the run folder's path or address, `needed_gib` what it will take on disk at most; None where that isn't
    known.
    """
    found = decisive_findings(search)
    if needed_gib is not None:
        found.append(disk_finding(Path.cwd() if is_url(place) else Path(place), needed_gib))
    if any(finding.level is Level.IMPOSSIBLE for finding in found):
        return found
    found += tracking_findings(search)
    if named_cluster() is not None:
        return found + _of_cluster(search, place)
    if gpu_count() > 1:
        both = [measure(gpu_count(), {"NCCL_P2P_DISABLE": disabled}) for disabled in ("0", "1")]
        found += all_reduce_findings(both[0], both[1], search.gpus_per_trial)
    return found


def decisive_findings(search: Search) -> list[Finding]:
    """What takes no time, and may make the search impossible."""
    found = [address_finding()]
    if named_cluster() is None:
        found += driver_findings(driver_here(), search.gpus_per_trial, least_gib(search))
    return found


def least_gib(search: Search) -> float | None:
    """Memory of the smallest trial in the space; None where that isn't known."""
    found = corners(search)
    return found[0].need.gib if found else None


def disk_finding(out: Path, needed_gib: float) -> Finding:
    """Whether the run folder's disk has room for what the search puts there at most."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 2**30
    text = f"{free:.1f} GiB free in {there}, at most {needed_gib:.2f} needed"
    if free < needed_gib:
        return Finding("disk", Level.WARNING, text, "Make room, give --out elsewhere, or set search.keep_paused lower")
    return Finding("disk", Level.OK, text)


def preflight_lines(findings: Sequence[Finding]) -> str:
    """For the plan."""
    return "\n".join(["preflight:", *(f"  {finding}" for finding in findings)])


def _of_cluster(search: Search, place: str) -> list[Finding]:
    from orchestrator.execution.tune_run import ray_session
    from orchestrator.preflight.cluster import cluster_findings, slow_findings
    from orchestrator.preflight.shared_storage import storage_findings

    try:
        with ray_session(dashboard=True) as dashboard:
            found = cluster_findings(search, least_gib(search)) + storage_findings(place)
            return found + slow_findings(search, dashboard)
    except SearchBroken as error:
        remedy = f"Run this on a node of the cluster (RAY_ADDRESS is {os.environ.get('RAY_ADDRESS', 'not set')})"
        return [Finding("Ray", Level.IMPOSSIBLE, str(error), remedy)]
