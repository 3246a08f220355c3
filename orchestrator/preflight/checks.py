"""All checks before a search, on this machine or on the cluster that it would join."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.planning.memory_bounds import memory_bounds
from orchestrator.preflight.all_reduce import measure
from orchestrator.preflight.gpus import all_reduce_checks, driver_checks
from orchestrator.preflight.tracking import tracking_checks
from orchestrator.ray_setup.address import address_check, named_cluster
from orchestrator.state.check_result import CheckResult, Severity
from orchestrator.state.search import Search
from orchestrator.storage.object_store import is_url
from trials.errors import SearchBroken
from trials.system.gpus import driver_here, gpu_count


def run_checks(search: Search, place: str, needed_gib: float | None) -> list[CheckResult]:
    """Run all checks. They take seconds on one machine, and a minute or more with several GPUs or a cluster.

    `place` is the run folder's path or address. `needed_gib` is the upper limit of its size; None: not known, and the
    disk isn't checked. If one of the quick checks finds that the search is impossible, the slow ones are left out.
    """
    found = decisive_checks(search)
    if needed_gib is not None:
        found.append(disk_check(Path.cwd() if is_url(place) else Path(place), needed_gib))
    if any(result.level is Severity.IMPOSSIBLE for result in found):
        return found
    found += tracking_checks(search)
    if named_cluster() is not None:
        return found + _of_cluster(search, place)
    if gpu_count() > 1:
        both = [measure(gpu_count(), {"NCCL_P2P_DISABLE": disabled}) for disabled in ("0", "1")]
        found += all_reduce_checks(both[0], both[1], search.gpus_per_trial)
    return found


def decisive_checks(search: Search) -> list[CheckResult]:
    """Run the checks that take no time and may find that the search is impossible."""
    found = [address_check()]
    if named_cluster() is None:
        found += driver_checks(driver_here(), search.gpus_per_trial, least_gib(search))
    return found


def least_gib(search: Search) -> float | None:
    """Return the minimum memory of the smallest trial in the space, in GiB; None if not known."""
    found = memory_bounds(search)
    return found[0].need.gib if found else None


def disk_check(out: Path, needed_gib: float) -> CheckResult:
    """Check whether the run folder's disk has at least `needed_gib` free."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 2**30
    text = f"{free:.1f} GiB free in {there}, at most {needed_gib:.2f} needed"
    if free < needed_gib:
        return CheckResult(
            "disk", Severity.WARNING, text, "Make room, give --out elsewhere, or set search.keep_paused lower"
        )
    return CheckResult("disk", Severity.OK, text)


def preflight_lines(results: Sequence[CheckResult]) -> str:
    """Return the check results as text for the plan."""
    return "\n".join(["preflight:", *(f"  {result}" for result in results)])


def _of_cluster(search: Search, place: str) -> list[CheckResult]:
    from orchestrator.execution.tune_run import ray_session
    from orchestrator.preflight.cluster import cluster_checks, slow_checks
    from orchestrator.preflight.shared_storage import storage_checks

    try:
        with ray_session(dashboard=True) as dashboard:
            found = cluster_checks(search, least_gib(search)) + storage_checks(place)
            return found + slow_checks(search, dashboard)
    except SearchBroken as error:
        remedy = f"Run this on a node of the cluster (RAY_ADDRESS is {os.environ.get('RAY_ADDRESS', 'not set')})"
        return [CheckResult("Ray", Severity.IMPOSSIBLE, str(error), remedy)]
