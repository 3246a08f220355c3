"""Runs a small function once on every node of a Ray cluster, with a time limit for the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trials.errors import first_line

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """A node of the Ray cluster."""

    id: str
    address: str
    hostname: str

    def __str__(self) -> str:
        """Return the node's name for error messages."""
        return f"{self.address} ({self.hostname}, node {self.id[:12]})"


@dataclass(frozen=True)
class NoAnswer:
    """Missing answer of a node; `why` is a phrase that follows the node's name."""

    why: str


def alive_nodes() -> list[Node]:
    """Return all nodes that are alive, with any resources or none."""
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["NodeManagerHostname"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def on_nodes(
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
        return NoAnswer(f"didn't answer within {seconds:.0f} s")
    try:
        return ray.get(reference)
    except Exception as error:  # an error of Ray, or any that the function raised
        return NoAnswer(f"can't run this project: {_cause(error)}")


def _cause(error: Exception) -> str:
    """Return the line of a remote traceback that has the error's message."""
    lines = [line for line in str(error).strip().splitlines() if line and not line.startswith(" ")]
    return lines[-1].rstrip(".") if lines else first_line(error)
