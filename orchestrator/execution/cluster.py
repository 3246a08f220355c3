"""Runs a small function once on every node of a Ray cluster, pinned to it, and waits for the answers so long only."""

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
    """A machine of the cluster, as Ray knows it."""

    id: str
    address: str
    hostname: str

    def __str__(self) -> str:
        """As an error names it."""
        return f"{self.address} ({self.hostname}, node {self.id[:12]})"


@dataclass(frozen=True)
class NoAnswer:
    """Why a node's answer isn't there, in words that follow its name."""

    why: str


def alive_nodes() -> list[Node]:
    """All nodes that Ray counts on now, whatever they have to give."""
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["NodeManagerHostname"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def on_nodes(
    function: Callable[..., T], arguments: Mapping[Node, Collection[Any]], seconds: float
) -> dict[Node, T | NoAnswer]:
    """What `function` returns on each of these nodes, called with the arguments given for it.

    It takes no CPU of a node, so that it needn't wait for trials. Nodes that leave the cluster meanwhile are left out.
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
    except Exception as error:  # Ray's own, or whatever the function raised
        return NoAnswer(f"can't run this project: {_cause(error)}")


def _cause(error: Exception) -> str:
    """The line of a remote traceback that says what went wrong."""
    lines = [line for line in str(error).strip().splitlines() if line and not line.startswith(" ")]
    return lines[-1].rstrip(".") if lines else first_line(error)
