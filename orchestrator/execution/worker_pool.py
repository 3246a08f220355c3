"""Pool of a search's workers: starts them as Ray actors, assigns trials to them, and restarts hung ones."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import ray
from ray.core.generated.gcs_pb2 import ActorTableData
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.execution.cluster import cores_of_nodes
from orchestrator.execution.trial_worker import TrialWorker
from orchestrator.execution.worker_group import WorkerGroup, WorkerGroupSpec
from orchestrator.planning.placement import trl_reason, workers_on_cpu
from orchestrator.state.search import Placement, Search

_MOST_SECONDS_BETWEEN_PROBES = 5.0
_AWAY_SECONDS = 30.0
_MOST_SECONDS_TO_LEAVE = 60.0
"""Upper limit for a worker to leave; a group waits for its ranks for a third of that."""
_WORKER_CPUS = 0.01
"""CPUs of a worker without a GPU: small enough to be always free, except on a node without CPUs for trials."""


class WorkerPool:
    """Resident workers, each with its slots.

    With worker groups, Ray Train keeps its own state in `storage`. `logs` is the folder for what the processes write to
    stdout and stderr; None: Ray handles it.
    """

    def __init__(
        self, search: Search, placement: Placement, storage: Path | None = None, logs: Path | None = None
    ) -> None:
        self._logs = logs
        self._slots = placement.slots_per_worker
        self._limit = search.recipe.machine.step_limit_seconds
        self._worker_of: dict[str, str] = {}
        self._leaving: dict[str, tuple[str, Any]] = {}
        # The handles keep the actors alive. Names cannot clash, because Ray gives every driver a namespace.
        if search.ranks > 1:
            assert storage is not None
            group = _group(search, storage, logs)
            self._actors = {name: _start_group(name, group) for name in _names(search, placement.engines)}
        else:
            placed = _placements(search, placement)
            names = _names(search, len(placed))
            self._actors = {name: self._start(name, each) for name, each in zip(names, placed, strict=True)}
        self._probes: dict[str, _HealthProbe] = {}
        self._leaves: dict[str, _Leave] = {}

    @property
    def has_room(self) -> bool:
        """Whether a worker that is not away has a free slot; also True if all workers are away.

        If nodes have left the cluster, fewer trials run than the search has slots. A trial that would only wait need
        not be chosen yet.
        """
        there = [name for name in self._actors if not self._is_away(name)]
        taken = list(self._worker_of.values())
        return not there or any(taken.count(name) < self._slots for name in there)

    def take_slot(self, trial_id: str) -> str:
        """Assign a trial to the worker with the most free slots; return its name.

        Workers that are away, as their node may have left, come last: a trial rather waits for a slot than for a node.
        """
        taken = list(self._worker_of.values())
        name = min(self._actors, key=lambda name: (self._is_away(name), taken.count(name)))
        self._worker_of[trial_id] = name
        return name

    def free_slot(self, trial_id: str) -> None:
        """Free a trial's slot, and stop the trial if it still runs; `has_left` tells when it has stopped."""
        name = self._worker_of.pop(trial_id, None)
        if name is not None:
            self._leaving[trial_id] = (name, self._actors[name].release.remote(trial_id))

    def has_left(self, trial_id: str) -> bool:
        """Whether a trial whose slot was freed has stopped. Only then may files in its folder be removed."""
        if trial_id not in self._leaving:
            return True
        name, answer = self._leaving[trial_id]
        if not ray.wait([answer], timeout=0)[0]:
            return False
        if self._is_cut_off(name, answer):
            self._leaving[trial_id] = (name, self._actors[name].release.remote(trial_id))
            return False
        # Also if `release` failed: then the worker's process is gone, and the trial with it.
        del self._leaving[trial_id]
        return True

    def free_all_slots(self) -> None:
        """Free the slots of all trials, and stop them."""
        for trial_id in list(self._worker_of):
            self.free_slot(trial_id)

    def restart_hung(self) -> list[str]:
        """Kill workers in which a thread or rank made no progress for too long; Ray restarts them.

        Return the trials that were in them. Never waits for a worker, so that it may be called often.
        """
        hung = [name for name in self._actors if not self._is_leaving(name) and self._hangs(name)]
        for name in hung:
            self._restart(name)
        return [trial_id for trial_id, name in self._worker_of.items() if name in hung]

    def close(self) -> None:
        """Kill the workers at once: the files of trials are consistent at any moment."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def _hangs(self, name: str) -> bool:
        probe = self._probes.get(name)
        if probe is None or probe.is_due(self._limit):
            answer = self._actors[name].seconds_since_progress.remote()
            self._probes[name] = _HealthProbe(answer, was_away=self._is_away(name))
            return False
        silent = probe.seconds_silent()
        return silent is not None and silent > self._limit

    def _restart(self, name: str) -> None:
        """Restart a worker. One that answers ends itself and says where it hangs; a group waits for its ranks' GPUs."""
        if not self._probes.pop(name).is_unanswered:
            self._leaves[name] = _Leave(self._actors[name].leave.remote(), time.monotonic())
        else:
            ray.kill(self._actors[name], no_restart=False)

    def _is_leaving(self, name: str) -> bool:
        """Whether a worker that was told to leave has not left yet; after a time limit it is killed."""
        leave = self._leaves.get(name)
        if leave is None:
            return False
        if ray.wait([leave.answer], timeout=0)[0]:
            del self._leaves[name]
            return False
        if time.monotonic() - leave.told > _MOST_SECONDS_TO_LEAVE:
            del self._leaves[name]
            ray.kill(self._actors[name], no_restart=False)
        return True

    def _is_cut_off(self, name: str, answer: Any) -> bool:
        """Whether a call did not reach a worker that may still run, on a node that is unreachable at the moment.

        Ray declares it dead, or restarts it, once it has given up the node.
        """
        try:
            ray.get(answer)
        except ActorUnavailableError:
            return bool(self._actors[name]._get_local_state() == ActorTableData.ALIVE)
        except RayError:
            return False
        return False

    def _is_away(self, name: str) -> bool:
        probe = self._probes.get(name)
        return probe is not None and probe.is_away

    def _start(self, name: str, placed: _WorkerPlacement) -> Any:
        # Per slot, a proxy may block in `next_message`, and another call in `release` while a trial stops. Calls that
        # return at once come on top.
        options = {"name": name, "max_restarts": -1, "max_concurrency": 3 * self._slots + 4}
        actor = ray.remote(TrialWorker).options(**options, **placed.options)
        log = None if self._logs is None else self._logs / f"{name}.log"
        return actor.remote(self._slots, placed.cpu_threads, log)


@dataclass(frozen=True)
class _Leave:
    """Pending departure of a worker: `answer` is ready when its process has ended; `told` is monotonic seconds."""

    answer: Any
    told: float


class _HealthProbe:
    """One call of a worker's `seconds_since_progress`, and its answer."""

    def __init__(self, answer: Any, *, was_away: bool) -> None:
        self._answer = answer
        self._was_away = was_away
        self._asked = time.monotonic()
        self._heard: float | None = None
        self._has_failed = False
        self.is_unanswered = True

    @property
    def age(self) -> float:
        """Seconds since the call was made."""
        return time.monotonic() - self._asked

    def seconds_silent(self) -> float | None:
        """Return the worker's answer, or the seconds since the call if there is none yet.

        None: the worker has no work, or the call failed, because its process ended.
        """
        if not self.is_unanswered:
            return self._heard
        if not ray.wait([self._answer], timeout=0)[0]:
            return self.age
        self.is_unanswered = False
        try:
            self._heard = ray.get(self._answer)
        except RayError:  # the process has ended, and Ray restarts it if it can
            self._has_failed = True
        return self._heard

    @property
    def is_away(self) -> bool:
        """Whether the worker seems to be gone. A worker that was away counts as away until it answers."""
        return self._has_failed or (self.is_unanswered and (self._was_away or self.age > _AWAY_SECONDS))

    def is_due(self, limit: float) -> bool:
        """Whether it is time for a new probe; `limit` is in seconds."""
        self.seconds_silent()
        return not self.is_unanswered and self.age > min(_MOST_SECONDS_BETWEEN_PROBES, limit / 4)


@dataclass(frozen=True)
class _WorkerPlacement:
    """Placement of one worker: options of its actor, and its number of threads; None: it has a GPU."""

    options: Mapping[str, Any]
    cpu_threads: int | None = None


def _names(search: Search, count: int) -> list[str]:
    backend = "engine" if trl_reason(search) is None else "trl"
    return [f"{backend}-{number}" for number in range(count)]


def _group(search: Search, storage: Path, logs: Path | None) -> WorkerGroupSpec:
    threads = search.recipe.machine.cpu_threads
    if threads is None and not search.gpus_per_trial:
        threads = max(1, min(cores_of_nodes().values()) // search.ranks)
    return WorkerGroupSpec(search.ranks, search.gpus_per_trial > 0, threads, storage, logs)


def _start_group(name: str, group: WorkerGroupSpec) -> Any:
    # Each rank may block in `next_task` and in `wait_cancelled`. The calls of the proxy come on top.
    options = {"name": name, "max_restarts": -1, "max_concurrency": 3 * group.ranks + 8, "num_cpus": 0}
    # Ray's clean-up after a killed TorchTrainer connects to the cluster that this variable names.
    environment = {"env_vars": {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}}
    return ray.remote(WorkerGroup).options(**options, runtime_env=environment).remote(group, name)


def _placements(search: Search, placement: Placement) -> list[_WorkerPlacement]:
    if search.gpus_per_trial:
        return [_WorkerPlacement({"num_gpus": search.gpus_per_trial, "num_cpus": 0})] * placement.engines
    machine, by_trl, found = search.recipe.machine, trl_reason(search) is not None, []
    for node, cores in cores_of_nodes().items():
        workers = workers_on_cpu(machine, cores, by_trl=by_trl)
        threads = min(cores, machine.cpu_threads or cores // workers)
        affinity = NodeAffinitySchedulingStrategy(node, soft=True)
        placed = _WorkerPlacement({"scheduling_strategy": affinity, "num_cpus": _WORKER_CPUS}, threads)
        found.append([placed] * workers)
    # Interleaved, so that fewer workers than possible are spread over the nodes.
    in_turn = chain.from_iterable(zip_longest(*found))
    return [placed for placed in in_turn if placed is not None][: placement.engines]
