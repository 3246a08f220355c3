"""Nodes of the Ray cluster: their cores and GPUs, a search's placement on them, and a function run on each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.planning.placement import plan_placement
from orchestrator.state.search import Search
from trials.errors import InputError, first_line

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """A node of the Ray cluster."""

    id: str
    address: str
    hostname: str
    gpus: int = 0
    cores: int = 0

    def __str__(self) -> str:
        """Return the node's name for error messages."""
        return f"{self.address} ({self.hostname}, node {self.id[:12]})"


@dataclass(frozen=True)
class NoAnswer:
    """Missing answer of a node; `why` is a phrase that follows the node's name."""

    why: str
    is_late: bool = False
    """Whether the node did not answer in time; else it cannot run the function."""


def alive_nodes() -> list[Node]:
    """Return all nodes that are alive, with any resources or none."""
    return [
        Node(
            *(node["NodeID"], node["NodeManagerAddress"], node["NodeManagerHostname"]),
            gpus=int(node["Resources"].get("GPU", 0)),
            cores=int(node["Resources"].get("CPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def run_on_nodes(
    function: Callable[..., T], arguments: Mapping[Node, Collection[Any]], seconds: float
) -> dict[Node, T | NoAnswer]:
    """Call `function` on each of these nodes with the node's arguments; return the results or missing answers.

    `seconds` is the time limit for all nodes together. The call takes no CPU, so that it need not wait for trials.
    Nodes that leave the cluster meanwhile are left out.
    """
    asked = {node: _pinned(function, node).remote(*given) for node, given in arguments.items()}
    ends = time.monotonic() + seconds
    answers = {node: _answer(reference, ends, seconds) for node, reference in asked.items()}
    there = set(alive_nodes())
    return {node: answer for node, answer in answers.items() if node in there}


def _pinned(function: Callable[..., Any], node: Node) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=strategy)


def _answer(reference: Any, ends: float, seconds: float) -> Any:
    if not ray.wait([reference], timeout=max(0.0, ends - time.monotonic()))[0]:
        ray.cancel(reference, force=True)
        return NoAnswer(f"didn't answer within {seconds:.0f} s", is_late=True)
    try:
        return ray.get(reference)
    except Exception as error:  # an error of Ray, or any that the function raised
        return NoAnswer(f"can't run this project: {_cause(error)}")


def _cause(error: Exception) -> str:
    """Return the line of a remote traceback that has the error's message."""
    lines = [line for line in str(error).strip().splitlines() if line and not line.startswith(" ")]
    return lines[-1].rstrip(".") if lines else first_line(error)


def cores_of_nodes() -> dict[str, int]:
    """Return the cores of every alive node by node id, without nodes that have none."""
    return {node.id: node.cores for node in alive_nodes() if node.cores}


def gpus_of_nodes() -> list[int]:
    """Return the number of GPUs of every alive node that has any."""
    return [node.gpus for node in alive_nodes() if node.gpus]


def placed(search: Search) -> Search:
    """Return the search with its placement on Ray's nodes: workers and slots. Raises `InputError` if no trial fits."""
    cores, each = list(cores_of_nodes().values()), gpus_of_nodes()
    if search.ranks > 1 and not each:
        search = replace(search, gpus_per_trial=0)
    if not cores and not search.gpus_per_trial:
        raise InputError("no node of the Ray cluster has a CPU for trials. Start Ray there without --num-cpus=0.")
    found = plan_placement(search, gpus=sum(each), cores=cores, gpus_each=min(each, default=1))
    if found.slots == 0:
        raise InputError(
            f"a trial wants {search.gpus_per_trial} GPU(s), and the Ray cluster has {sum(each)}. Add some, or "
            "give a smaller --gpus-per-trial."
        )
    return replace(search, placement=found)
