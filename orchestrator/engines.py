"""The engines of a search on the head's side: started as Ray actors, which trial is in which, and who of them hangs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.engine_actor import EngineActor
from orchestrator.placement import engines_on_cpu
from orchestrator.run_folder import Placement, Search

_MOST_SECONDS_BETWEEN_LOOKS = 5.0
_AWAY_SECONDS = 30.0


class Engines:
    """Resident engines, each with its slots; none where every trial has a process of its own."""

    def __init__(self, search: Search, placement: Placement) -> None:
        self._slots = placement.slots_per_engine if placement.engines else 0
        self._limit = search.recipe.machine.step_limit_seconds
        self._engine_of: dict[str, str] = {}
        self._leaving: dict[str, Any] = {}
        homes = _homes(search, placement)
        # The handles keep the actors alive. Names are this search's own: Ray gives every driver a namespace.
        self._actors = {f"engine-{number}": self._start(f"engine-{number}", home) for number, home in enumerate(homes)}
        self._looks: dict[str, _Look] = {}

    def take_slot(self, trial_id: str) -> str | None:
        """The name of the engine that has most free slots, which the trial is counted to from now on.

        None that is away, as its machine may have left, unless all are: trials rather wait for a slot than for it.
        """
        if not self._actors:
            return None
        taken = list(self._engine_of.values())
        name = min(self._actors, key=lambda name: (self._is_away(name), taken.count(name)))
        self._engine_of[trial_id] = name
        return name

    def free_slot(self, trial_id: str) -> None:
        """The trial is over, or nobody waits for it any more: it's stopped if it still runs. See `has_left`."""
        name = self._engine_of.pop(trial_id, None)
        if name is not None:
            self._leaving[trial_id] = self._actors[name].release.remote(trial_id)

    def has_left(self, trial_id: str) -> bool:
        """Whether nothing of a trial runs any more whose slot was freed. Only then may its folder be tidied up."""
        leaving = self._leaving.get(trial_id)
        if leaving is not None and ray.wait([leaving], timeout=0)[0]:
            # Also if that failed: then the engine's process is gone, and the trial with it.
            del self._leaving[trial_id]
        return trial_id not in self._leaving

    def free_all_slots(self) -> None:
        """Stops all trials."""
        for trial_id in list(self._engine_of):
            self.free_slot(trial_id)

    def restart_hung(self) -> list[str]:
        """Ends the processes of engines in which somebody hasn't got on for too long; Ray starts them again.

        Returns the trials that were in them. Never waits for an engine, so that it may be called often.
        """
        hung = [name for name in self._actors if self._hangs(name)]
        for name in hung:
            ray.kill(self._actors[name], no_restart=False)
        return [trial_id for trial_id, name in self._engine_of.items() if name in hung]

    def close(self) -> None:
        """Ends the engines' processes at once: what trials have on disk is whole at any moment."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def _hangs(self, name: str) -> bool:
        look = self._looks.get(name)
        if look is None or look.is_due(self._limit):
            self._looks[name] = _Look(self._actors[name].seconds_since_progress.remote())
            return False
        silent = look.seconds_silent()
        if silent is None or silent <= self._limit:
            return False
        del self._looks[name]
        return True

    def _is_away(self, name: str) -> bool:
        look = self._looks.get(name)
        return look is not None and look.is_away

    def _start(self, name: str, home: _Home) -> Any:
        # Every holder may wait for a word in a call of its own, and one call more while its trial leaves; calls that
        # take no time come on top.
        options = {"name": name, "max_restarts": -1, "max_concurrency": 3 * self._slots + 4, "num_cpus": 0}
        actor = ray.remote(EngineActor).options(**options, **home.options)
        return actor.remote(self._slots, home.cpu_threads)


class _Look:
    """One question to an engine, how long somebody in it hasn't got on, and what became of it."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._asked = time.monotonic()
        self._heard: float | None = None
        self._has_failed = False
        self.is_unanswered = True

    @property
    def age(self) -> float:
        """Seconds since it was asked."""
        return time.monotonic() - self._asked

    def seconds_silent(self) -> float | None:
        """As the engine answered, or since it was asked if it hasn't; None: nobody is at work, or it's starting."""
        if not self.is_unanswered:
            return self._heard
        if not ray.wait([self._answer], timeout=0)[0]:
            return self.age
        self.is_unanswered = False
        try:
            self._heard = ray.get(self._answer)
        except RayError:  # its process has ended, and is started again where that is possible
            self._has_failed = True
        return self._heard

    @property
    def is_away(self) -> bool:
        """Whether the engine doesn't seem to be there."""
        return self._has_failed or (self.is_unanswered and self.age > _AWAY_SECONDS)

    def is_due(self, limit: float) -> bool:
        """Whether it's time to ask again."""
        self.seconds_silent()
        return not self.is_unanswered and self.age > min(_MOST_SECONDS_BETWEEN_LOOKS, limit / 4)


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
