"""Engines of machines that leave a Ray cluster and come back; real clusters, of raylets on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from orchestrator.execution.cluster import cores_of_nodes, placed
from orchestrator.execution.worker_pool import WorkerPool
from orchestrator.state.search import Placement
from tests.orchestrator.execution.test_worker_pool import make_engine_search
from tests.support.waiting import wait_until
from trials.errors import InputError

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with one core and a GPU that only Ray believes in."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_trials_go_to_the_engines_that_are_left_until_a_machine_is_back(cluster: Cluster) -> None:
    leaving = cluster.add_node(num_cpus=1, num_gpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    engines = WorkerPool(replace(make_engine_search(), gpus_per_trial=1), Placement(engines=2, slots=4))
    processes = {name: ray.get(ray.get_actor(name).ready.remote()) for name in ("engine-0", "engine-1")}
    raylet = leaving.all_processes["raylet"][0].process.pid
    gone, stays = sorted(processes, key=lambda name: psutil.Process(processes[name]).ppid() != raylet)
    lost = next(trial_id for trial_id in ("0001", "0002") if engines.take_slot(trial_id) == gone)

    cluster.remove_node(leaving, allow_graceful=False)
    assert wait_until(lambda: not engines.restart_hung() and engines._is_away(gone), seconds=60)
    engines.free_slot(lost)
    assert wait_until(lambda: engines.has_left(lost), seconds=60)
    for trial_id in [trial_id for trial_id in ("0001", "0002") if trial_id != lost]:
        engines.free_slot(trial_id)

    assert stays_away(engines, gone, seconds=12.0)  # several looks
    assert [engines.take_slot(trial_id) for trial_id in ("0003", "0004")] == [stays] * 2
    assert not engines.has_room
    assert engines.take_slot("0005") == stays  # it waits there for a slot, which is nearer than the machine that left
    engines.free_slot("0005")
    engines.free_slot("0004")
    assert engines.has_room

    cluster.add_node(num_cpus=1, num_gpus=1)
    assert wait_until(lambda: not engines.restart_hung() and not engines._is_away(gone), seconds=120)
    assert engines.take_slot("0006") == gone
    engines.close()


def test_a_machine_without_cores_for_trials_gets_no_engine(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=0)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    assert list(cores_of_nodes().values()) == [1]


def test_a_cluster_without_cores_for_trials_is_refused() -> None:
    ray.init(num_cpus=0, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with pytest.raises(InputError, match="no node of the Ray cluster has a CPU"):
            placed(make_engine_search())
    finally:
        ray.shutdown()


def stays_away(engines: WorkerPool, name: str, seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        engines.restart_hung()
        if not engines._is_away(name):
            return False
        time.sleep(0.1)
    return True
