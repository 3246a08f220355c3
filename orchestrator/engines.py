"""The engines of a search on the head's side: started as Ray actors, and which trial is in which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.engine_actor import EngineActor
from orchestrator.placement import engines_on_cpu
from orchestrator.run_folder import Placement, Search


class Engines:
    """Resident engines, each with its slots; none where every trial has a process of its own."""

    def __init__(self, search: Search, placement: Placement) -> None:
        self._slots = placement.slots_per_engine if placement.engines else 0
        self._engine_of: dict[str, str] = {}
        homes = _homes(search, placement)
        # The handles keep the actors alive. Names are this search's own: Ray gives every driver a namespace.
        self._actors = {f"engine-{number}": self._start(f"engine-{number}", home) for number, home in enumerate(homes)}

    def take_slot(self, trial_id: str) -> str | None:
        """The name of the engine that has most free slots, which the trial is counted to from now on."""
        if not self._actors:
            return None
        taken = list(self._engine_of.values())
        name = min(self._actors, key=taken.count)
        self._engine_of[trial_id] = name
        return name

    def free_slot(self, trial_id: str) -> None:
        """The trial is over, or nobody waits for it any more: it's stopped if it still runs."""
        name = self._engine_of.pop(trial_id, None)
        if name is not None:
            self._actors[name].release.remote(trial_id)

    def free_all_slots(self) -> None:
        """Stops all trials."""
        for trial_id in list(self._engine_of):
            self.free_slot(trial_id)

    def close(self) -> None:
        """Ends the engines' processes at once: what trials have on disk is whole at any moment."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def _start(self, name: str, home: _Home) -> Any:
        # Every holder may wait for a word in a call of its own, and calls that take no time come on top.
        options = {"name": name, "max_restarts": -1, "max_concurrency": 2 * self._slots + 4, "num_cpus": 0}
        actor = ray.remote(EngineActor).options(**options, **home.options)
        return actor.remote(self._slots, home.cpu_threads)


@dataclass(frozen=True)
class _Home:
    """Where an engine is to be: options of its actor, and the threads that it may use if it has no GPU."""

    options: Mapping[str, Any]
    cpu_threads: int | None = None


def _homes(search: Search, placement: Placement) -> list[_Home]:
    if search.gpus_per_trial:
        return [_Home({"num_gpus": 1})] * placement.engines
    if not placement.engines:
        return []
    machine = search.recipe.machine
    homes = []
    for node, cores in cores_of_nodes().items():
        affinity = NodeAffinitySchedulingStrategy(node, soft=True)
        home = _Home({"scheduling_strategy": affinity}, min(cores, machine.cpu_threads or cores))
        homes.append([home] * engines_on_cpu(machine, cores))
    # In turn: where there are fewer engines than there could be, they're spread over the machines.
    in_turn = chain.from_iterable(zip_longest(*homes))
    return [home for home in in_turn if home is not None][: placement.engines]


def cores_of_nodes() -> dict[str, int]:
    """Cores of every machine that Ray has, by its node's id."""
    return {node["NodeID"]: max(1, int(node["Resources"].get("CPU", 1))) for node in ray.nodes() if node["Alive"]}
