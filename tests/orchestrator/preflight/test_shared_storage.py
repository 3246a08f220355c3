"""That a cluster's nodes are found out which don't see the run folder: real nodes, real folders of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from orchestrator.execution.cluster import NoAnswer, alive_nodes, run_on_nodes
from orchestrator.preflight.shared_storage import (
    NodeWithoutStorage,
    existing_part,
    nodes_without_storage,
    require_shared_storage,
)
from orchestrator.storage.locations import open_run
from orchestrator.storage.object_store import ObjectStore
from orchestrator.storage.visibility import UNSEEN, is_visible, probe_name, require_visible, write_probe
from tests.support.cli import ROOT, environment, small_search
from tests.support.s3_server import BUCKET, s3_server
from trials.errors import InputError, RunFolderError

pytestmark = pytest.mark.cluster

OF_EACH = Path("/proc/self/cwd/run")
"""A folder that every node has on its own: its processes run in the folder that it was started in."""
STORE_OF_EACH = "file:///proc/self/cwd/store/search"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes in two folders; this process works in the first one's, and has joined."""
    before, own, other = Path.cwd(), tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("other")
    (own / "run").mkdir()
    os.chdir(own)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.chdir(other)
    cluster.add_node(num_cpus=1)
    os.chdir(own)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    os.chdir(before)


@pytest.fixture
def other_run(cluster: Cluster) -> Iterator[Path]:
    """The second node's own folder of the same name."""
    second = next(node for node in alive_nodes() if node.id != ray.get_runtime_context().get_node_id())
    there = run_on_nodes(lambda: str(Path.cwd()), {second: ()}, 60.0)[second]
    assert isinstance(there, str)
    path = Path(there) / "run"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def is_of_the_other(unseeing: NodeWithoutStorage) -> bool:
    return unseeing.node.id != ray.get_runtime_context().get_node_id()


def test_nodes_that_share_the_folder_are_not_blind_and_leave_nothing(cluster: Cluster, tmp_path: Path) -> None:
    assert len(alive_nodes()) == 2
    assert nodes_without_storage(str(tmp_path)) == []
    require_shared_storage(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_the_folder_is_named(cluster: Cluster) -> None:
    (unseeing,) = nodes_without_storage(str(OF_EACH))
    assert is_of_the_other(unseeing)
    assert unseeing.why == "doesn't have that folder"
    with pytest.raises(InputError, match=rf"{unseeing.node.address} \(.+, node {unseeing.node.id[:12]}\).*\n.*NFS"):
        require_shared_storage(str(OF_EACH))
    assert list(OF_EACH.iterdir()) == []


def test_a_node_with_a_folder_of_its_own_is_named_and_cleared_up(cluster: Cluster, other_run: Path) -> None:
    (unseeing,) = nodes_without_storage(str(OF_EACH))
    assert is_of_the_other(unseeing)
    assert "a folder of its own" in unseeing.why
    assert list(other_run.iterdir()) == []
    assert list(OF_EACH.iterdir()) == []


def test_a_node_that_sees_the_drivers_marker_but_whose_own_stays_with_it_is_named(
    cluster: Cluster, other_run: Path
) -> None:
    """As with a stale copy, or a mount that is written to one way only."""
    copying = threading.Event()

    def copy_what_the_driver_writes() -> None:
        while not copying.wait(0.05):
            for path in OF_EACH.glob(".marker-*-driver"):
                with suppress(FileNotFoundError):  # removed meanwhile
                    shutil.copy(path, other_run)

    thread = threading.Thread(target=copy_what_the_driver_writes)
    thread.start()
    try:
        (unseeing,) = nodes_without_storage(str(OF_EACH))
    finally:
        copying.set()
        thread.join()
    assert is_of_the_other(unseeing)
    assert "a folder of its own" in unseeing.why


def test_nodes_that_do_not_answer_are_named_in_time(cluster: Cluster, tmp_path: Path) -> None:
    def sleeps() -> None:
        time.sleep(60)

    answers = run_on_nodes(sleeps, dict.fromkeys(alive_nodes(), ()), 1.0)
    assert set(answers.values()) == {NoAnswer("didn't answer within 1 s", is_late=True)}


def test_a_node_where_the_project_breaks_says_how(cluster: Cluster) -> None:
    def breaks() -> None:
        raise ImportError("no such module")

    answers = run_on_nodes(breaks, dict.fromkeys(alive_nodes(), ()), 60.0)
    assert all(isinstance(answer, NoAnswer) and "no such module" in answer.why for answer in answers.values())


def test_a_folder_that_the_driver_cannot_write_to_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't write to .*Give another --out"):
        nodes_without_storage(str(tmp_path / "absent"))


def test_nodes_that_reach_a_store_see_the_same_there(cluster: Cluster, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    assert nodes_without_storage(url) == []
    assert ObjectStore(url).names() == []


def test_nodes_without_the_credentials_of_a_store_are_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)  # of this process; the nodes were started before
        unseeing = nodes_without_storage(f"s3://{BUCKET}/run")
        assert ObjectStore(f"s3://{BUCKET}/run").names() == []
    assert {each.node for each in unseeing} == set(alive_nodes())
    assert all(each.why.startswith("can't write to it: can't write .marker-") for each in unseeing)


def test_a_machine_that_cannot_write_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert write_probe(str(tmp_path / "file"), "token", "node") == "can't write to it: Not a directory"


def test_a_marker_of_another_search_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.storage.visibility._SEEN_SECONDS", 0.2)
    path = tmp_path / probe_name("token", "node")
    path.write_text("another")
    assert not is_visible(str(tmp_path), "token", "node")
    path.write_text("token")
    assert is_visible(str(tmp_path), "token", "node")


def test_a_machine_that_joined_later_and_does_not_share_the_folder_refuses_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.storage.visibility._SEEN_SECONDS", 0.2)
    with pytest.raises(RunFolderError, match=UNSEEN):
        require_visible(tmp_path)
    (tmp_path / "config.json").touch()
    require_visible(tmp_path)


def test_before_a_run_folder_is_made_its_parent_can_be_looked_at(tmp_path: Path) -> None:
    assert existing_part(tmp_path / "runs" / "a") == tmp_path
    assert existing_part(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("place", "why"), [(str(OF_EACH / "search"), "doesn't have that folder"), (STORE_OF_EACH, "reaches another store")]
)
def test_the_command_stops_and_names_the_node(cluster: Cluster, tmp_path: Path, place: str, why: str) -> None:
    command = small_search("--out", place, "--budget", "5m")
    surroundings = environment(RAY_ADDRESS=cluster.address, PYTHONPATH=str(ROOT), XDG_CACHE_HOME=str(tmp_path))
    # In the first node's folder, as this process is.
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    _, error = done.stderr.split("error: ")
    assert "isn't on storage that every node of the Ray cluster sees" in error
    assert error.count(why) == 1
    assert f"go on by --resume {place}" in error
    run = open_run(place)
    assert run.records() == []
    assert not list(run.path.glob(".marker*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount over a folder for one node alone")
def test_a_node_on_which_another_disk_lies_over_the_folder_is_named(cluster: Cluster, tmp_path: Path) -> None:
    """As where the mount is missing on one machine: really, in a mount namespace of its own."""
    ray_start = f"{Path(sys.executable).parent / 'ray'} start --block --num-cpus 1 --address {cluster.address}"
    script = f"mount -t tmpfs none {tmp_path} && exec {ray_start}"
    before = set(alive_nodes())
    node = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.DEVNULL)
    try:
        while not (joined := set(alive_nodes()) - before):
            assert node.poll() is None, "the node didn't start: is this container allowed to unshare?"
            time.sleep(0.2)
        assert {unseeing.node for unseeing in nodes_without_storage(str(tmp_path))} == joined
    finally:
        node.terminate()
        node.wait(60)
    assert list(tmp_path.iterdir()) == []
