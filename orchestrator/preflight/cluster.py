"""Checks of a Ray cluster: what every node has, its clock, and all-reduce over its GPUs."""

from __future__ import annotations

import time

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_nodes

from orchestrator.execution.cluster import (
    NoAnswer,
    Node,
    alive_nodes,
    cores_of_nodes,
    gpus_of_nodes,
    placed,
    run_on_nodes,
)
from orchestrator.preflight.all_reduce import AllReduce, measure
from orchestrator.preflight.gpus import all_reduce_checks
from orchestrator.preflight.nodes import ClockOffset, NodeReport, clock_checks, node_checks, this_node
from orchestrator.state.check_result import CheckResult, Severity
from orchestrator.state.search import Search
from trials.errors import InputError, first_line

_NODE_SECONDS = 60.0
"""Time limit for a node to start a process and answer."""
_ALL_REDUCE_SECONDS = 240.0
_STATE_SECONDS = 10
_CLOCK_READINGS = 5


def cluster_checks(search: Search, least_gib: float | None) -> list[CheckResult]:
    """Run the quick checks of the cluster that this process has joined, on every node; some seconds."""
    names = _names()
    answers = run_on_nodes(this_node, dict.fromkeys(names, ()), _NODE_SECONDS)
    reports = {names[node]: answer for node, answer in answers.items() if isinstance(answer, NodeReport)}
    silent = [_no_report(names[node], answer) for node, answer in answers.items() if isinstance(answer, NoAnswer)]
    readings = {names[node]: _clock(node) for node in names if names[node] in reports}
    clocks = {name: clock for name, clock in readings.items() if clock is not None}
    found = node_checks(this_node(), reports, search.gpus_per_trial, least_gib)
    return [_slots_check(search), *silent, *found, *clock_checks(clocks)]


def slow_checks(search: Search, dashboard: str | None) -> list[CheckResult]:
    """Run the checks that only a plan has time for: Ray's state API, and all-reduce over the GPUs of each node."""
    found = [_state_check(dashboard)]
    for node, name in _names().items():
        if node.gpus > 1:
            found += [
                CheckResult(f"{name} {one.name}", one.level, one.text, one.remedy)
                for one in _all_reduce(node, search.gpus_per_trial)
            ]
    return found


def _names() -> dict[Node, str]:
    """Return the nodes that are alive, with a name for each that no other has."""
    found = alive_nodes()
    hosts = [node.hostname for node in found]
    # Several nodes can be on one machine.
    return {
        node: node.hostname if hosts.count(node.hostname) == 1 else f"{node.hostname} {node.id[:6]}" for node in found
    }


def _no_report(name: str, answer: NoAnswer) -> CheckResult:
    if answer.is_late:
        remedy = "See whether it's overloaded: ray status"
        return CheckResult(name, Severity.WARNING, f"no answer in {_NODE_SECONDS:.0f} s", remedy)
    return CheckResult(name, Severity.IMPOSSIBLE, f"it {answer.why}", "Install it there: scripts/setup")


def _clock(node: Node) -> ClockOffset | None:
    """Return the clock reading with the shortest round trip, the most exact one; None if the node has left."""
    readings = []
    for _ in range(_CLOCK_READINGS):
        before, began = time.time(), time.perf_counter()
        there = run_on_nodes(_now, {node: ()}, _NODE_SECONDS).get(node)
        round_trip = time.perf_counter() - began
        if not isinstance(there, float):
            return None
        readings.append(ClockOffset(there - before - round_trip / 2, round_trip))
    return min(readings, key=lambda clock: clock.round_trip)


def _now() -> float:
    return time.time()


def _slots_check(search: Search) -> CheckResult:
    cores, gpus = cores_of_nodes(), sum(gpus_of_nodes())
    text = f"{len(cores)} nodes, {gpus} GPUs, {sum(cores.values())} cores"
    try:
        placement = placed(search).placement
    except InputError:
        remedy = "Add nodes, or give a smaller --gpus-per-trial"
        return CheckResult("cluster", Severity.IMPOSSIBLE, f"{text}: too few for one trial", remedy)
    assert placement is not None
    if gpus and not search.gpus_per_trial:
        return CheckResult("cluster", Severity.WARNING, f"{text}, but trials use no GPU", "Give --gpus-per-trial 1")
    return CheckResult("cluster", Severity.OK, f"{text}; trials at once: {placement.slots}")


def _state_check(dashboard: str | None) -> CheckResult:
    """Check the state API at the address that Ray finds by itself.

    Ray Train's cleaner of placement groups asks it before it frees the GPUs of stopped trials.
    """
    where = "no dashboard" if dashboard is None else f"dashboard at {dashboard}"
    try:
        listed = {node.node_id for node in list_nodes(timeout=_STATE_SECONDS)}
    except Exception as error:  # whatever an HTTP client raises
        text = f"{where}; its state API doesn't answer ({first_line(error)})"
        remedy = "Start the head with --include-dashboard=true: without it GPUs of stopped trials can stay taken"
        return CheckResult("dashboard", Severity.WARNING, text, remedy)
    here = {node.id for node in alive_nodes()}
    if not here <= listed:
        remedy = f"export RAY_ADDRESS={ray.get_runtime_context().gcs_address}"
        return CheckResult("dashboard", Severity.WARNING, f"{where}; Ray asks another cluster's state API", remedy)
    return CheckResult("dashboard", Severity.OK, f"{where}; its state API answers, {len(listed)} nodes")


def _all_reduce(node: Node, gpus_per_trial: int) -> list[CheckResult]:
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    both = ray.remote(_both_ways).options(num_cpus=0, num_gpus=node.gpus, scheduling_strategy=strategy)
    answer = both.remote(node.gpus)
    try:
        with_p2p, without_p2p = ray.get(answer, timeout=_ALL_REDUCE_SECONDS)
        return all_reduce_checks(with_p2p, without_p2p, gpus_per_trial)
    except RayError as error:
        ray.cancel(answer, force=True)
        why = "they are in use" if isinstance(error, GetTimeoutError) else _last_line(error)
        text = f"not checked over {node.gpus} GPUs ({why})"
        return [CheckResult("NCCL", Severity.WARNING, text, "Ask again when nothing else runs there")]


def _both_ways(ranks: int) -> tuple[AllReduce, AllReduce]:
    return measure(ranks, {"NCCL_P2P_DISABLE": "0"}), measure(ranks, {"NCCL_P2P_DISABLE": "1"})


def _last_line(error: RayError) -> str:
    """Return the last line of a traceback from another process, which is the error itself."""
    return str(error).strip().splitlines()[-1].strip()
