"""A real cluster of two nodes on this machine, one of them with GPUs in name only, is looked at."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray
from ray.cluster_utils import Cluster

from orchestrator.controller.events import Event
from orchestrator.preflight import cluster as preflight_cluster
from orchestrator.preflight.cluster import _slots_check, cluster_checks, slow_checks
from orchestrator.preflight.nodes import this_node
from orchestrator.state.check_result import CheckResult, Severity
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.supervisor.session import look_at_cluster
from tests.support.fake_search import make_controller, make_search, run_base
from trials.errors import InputError

pytestmark = pytest.mark.cluster


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Of the cluster that this process has joined."""
    head = {"num_cpus": 1, "num_gpus": 2, "include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield f"http://127.0.0.1:{head['dashboard_port']}"
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def found(dashboard: str, small_recipe: object) -> list[CheckResult]:
    return cluster_checks(make_search(small_recipe), None)  # type: ignore[arg-type]


def test_the_cluster_and_its_clocks_have_a_line_each(found: list[CheckResult], small_recipe: object) -> None:
    said = {result.name: result for result in found}
    levels = {name: result.level for name, result in said.items() if name != "cluster"}
    assert set(levels.values()) == {Severity.OK}
    assert said["cluster"].level is Severity.WARNING  # it has GPUs, and this search was told to use none
    assert said["cluster"].text == "2 nodes, 2 GPUs, 2 cores, but trials use no GPU"
    on_gpus = replace(make_search(small_recipe), gpus_per_trial=1)  # type: ignore[arg-type]
    assert str(_slots_check(on_gpus)) == "ok: cluster: 2 nodes, 2 GPUs, 2 cores; trials at once: 2"
    assert said["clocks"].level is Severity.OK  # it's one machine
    assert said["clocks"].text.startswith("2 within 0.")


def test_nodes_with_other_code_than_here_are_named(
    dashboard: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = this_node()
    monkeypatch.setattr("orchestrator.preflight.nodes._code", lambda: "changed")  # in this process, and no other
    found = [line for line in cluster_checks(search, None) if line.level is not Severity.OK and line.name != "cluster"]
    assert [line.level for line in found] == [Severity.IMPOSSIBLE] * 2
    assert {line.text for line in found} == {f"code {here.versions['code']}; here changed"}
    assert len({line.name for line in found}) == 2
    assert all(line.name.startswith(socket.gethostname()) for line in found)


def test_the_state_api_answers_and_gpus_add_up_where_there_are_two(
    dashboard: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    state, nccl = slow_checks(search, dashboard)
    assert state.level is Severity.OK
    assert nccl.level in (Severity.OK, Severity.WARNING), (
        nccl
    )  # gloo takes no notice of P2P, and which is faster is chance
    assert state.text == f"dashboard at {dashboard}; its state API answers, 2 nodes"
    assert "all-reduce over 2 GPUs: with P2P " in nccl.text
    assert nccl.text.count("GB/s") == 2


def test_a_state_api_that_ray_does_not_find_is_pointed_out(
    dashboard: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{free_port()}")
    state = preflight_cluster._state_check(dashboard)
    assert state.level is Severity.WARNING
    assert "its state API doesn't answer" in state.text


def test_gpus_that_are_taken_are_not_waited_for_for_ever(
    dashboard: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.preflight.cluster._ALL_REDUCE_SECONDS", 2.0)
    proxy = ray.remote(num_gpus=1)(Counter).remote()
    ray.get(proxy.total.remote())
    nccl = slow_checks(search, dashboard)[1]
    ray.kill(proxy)
    assert (nccl.level, nccl.text) == (Severity.WARNING, "not checked over 2 GPUs (they are in use)")


def test_a_new_search_is_refused_and_one_that_goes_on_is_only_warned(
    dashboard: str, run: RunDir, search: Search
) -> None:
    heard: list[Event] = []
    greedy = replace(search, gpus_per_trial=5, ranks=5)
    with pytest.raises(InputError, match=r"2 GPUs, 2 cores: too few for one trial"):
        look_at_cluster(greedy, run, heard.append)
    assert heard == []
    run_base(run, make_controller(run, search))
    look_at_cluster(greedy, run, heard.append)
    assert "too few for one trial" in str(heard)
