"""A search whose run folder is on an S3 server, on a cluster of two nodes that share no folder; killed, and resumed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from orchestrator.execution.cluster import alive_nodes
from orchestrator.state.run_dir import RunDir
from orchestrator.storage.lease import run_lease
from orchestrator.storage.mirror import working_copy
from orchestrator.storage.object_store import ObjectStore
from orchestrator.storage.trial_snapshots import TrialSnapshotStore
from tests.support.cli import environment, run_command, searcher, small_search
from tests.support.s3_server import BUCKET, s3_server
from trials.records.trial_dir import Origin
from trials.system.processes import is_alive

pytestmark = pytest.mark.cluster

RUN = f"s3://{BUCKET}/runs/night"


@dataclass(frozen=True)
class Night:
    """The killed command, then its resumption on what is as good as another machine."""

    store: ObjectStore
    killed_after: Mapping[str, int]
    """Evaluations of each trial that were on the store when the command was killed."""
    resumed: subprocess.CompletedProcess[str]
    copy: RunDir
    caches: tuple[Path, ...]
    env: Mapping[str, str]


def evaluations(store: ObjectStore) -> dict[str, int]:
    names = [name for name in store.names("trials/") if name.endswith("/index.json")]
    found = {}
    for name in names:
        snapshot = TrialSnapshotStore(store, name.removesuffix("/index.json")).read()
        assert snapshot is not None
        entry = snapshot.files.get("metrics.jsonl")
        found[name.split("/")[1]] = 0 if entry is None else entry.size
    return found


def wait_for_evaluations(store: ObjectStore, wanted: int, process: subprocess.Popen[str]) -> dict[str, int]:
    while True:
        found = evaluations(store)
        if sum(size > 0 for trial, size in found.items() if trial != "0000") >= wanted:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    caches = tuple(tmp_path_factory.mktemp(name) for name in ("first", "second", "driver"))
    before = dict(os.environ)
    with s3_server() as server:
        os.environ.update({**server.environment, "XDG_CACHE_HOME": str(caches[0])})
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = second_node(cluster, caches)
        try:
            yield search_twice(cluster.address, caches)
        finally:
            if second is not None:
                second.terminate()
                second.wait(60)
            cluster.shutdown()
            os.environ.clear()
            os.environ.update(before)


def second_node(cluster: Cluster, caches: tuple[Path, ...]) -> subprocess.Popen[bytes] | None:
    """On which the others' folders aren't there at all, where this process may do that (root)."""
    os.environ["XDG_CACHE_HOME"] = str(caches[1])
    if os.geteuid() != 0:
        cluster.add_node(num_cpus=1)
        return None
    hide = " && ".join(f"mount -t tmpfs none {cache}" for cache in (caches[0], caches[2]))
    ray_start = f"{Path(sys.executable).parent / 'ray'} start --block --num-cpus 1 --address {cluster.address}"
    command = ["unshare", "--mount", "sh", "-c", f"{hide} && exec {ray_start}"]
    node = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    ray.init(address=cluster.address, logging_level="ERROR")
    while len(alive_nodes()) < 2:
        assert node.poll() is None, "the node didn't start: is this container allowed to unshare?"
        time.sleep(0.2)
    ray.shutdown()
    return node


def search_twice(ray_address: str, caches: tuple[Path, ...]) -> Night:
    os.environ["XDG_CACHE_HOME"] = str(caches[2])
    env = {"RAY_ADDRESS": ray_address, "XDG_CACHE_HOME": str(caches[2])}
    settings = [*searcher("cmaes", "hyperband"), "evaluations=6", "train_tokens=6000"]
    command = small_search(*settings, "--out", RUN, "--trials", "3", "--budget", "30m")
    process = subprocess.Popen(
        command, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    store = ObjectStore(RUN)
    known = wait_for_evaluations(store, 2, process)
    process.kill()
    process.communicate()
    resume = [sys.executable, "-m", "orchestrator.search", "--resume", RUN]
    copy = working_copy(RUN)
    shutil.rmtree(copy)
    resumed = run_command(resume, timeout=600, **env)
    return Night(store, known, resumed, RunDir(copy), caches, env)


def test_it_goes_on_from_the_store_alone_and_exports(night: Night) -> None:
    assert night.resumed.returncode == 0, night.resumed.stdout + night.resumed.stderr
    assert f"run folder {RUN}" in night.resumed.stdout
    assert f"all of it is on {RUN}" in night.resumed.stdout
    assert "export/manifest.json" in night.store.names()
    assert {"search.json", "study.db", "report.html", "trials.csv"} <= set(night.store.names())


def test_no_evaluation_that_was_on_the_store_is_lost(night: Night) -> None:
    final = evaluations(night.store)
    assert set(night.killed_after) <= set(final)
    records = {record.id: record for record in night.copy.records()}
    assert len([record for record in records.values() if record.origin is not Origin.BASE]) == 3
    for record in records.values():
        steps = [point.step for point in record.points]
        assert record.ending is not None
        assert steps == sorted(set(steps))
        assert final[record.id] >= night.killed_after.get(record.id, 0)


def test_another_machine_is_refused_while_a_command_is_at_work(night: Night, tmp_path: Path) -> None:
    resume = [sys.executable, "-m", "orchestrator.search", "--resume", RUN, "--budget", "9m"]
    with run_lease(night.store, Path("/elsewhere")):
        refused = run_command(resume, timeout=600, **{**night.env, "XDG_CACHE_HOME": str(tmp_path)})
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert f"{RUN} is in use by process {os.getpid()}" in refused.stderr


def test_trials_ran_in_copies_on_the_nodes_and_left_nothing_but_what_was_killed(night: Night) -> None:
    """On which of the two is Ray's affair, as it asks for one node rather than insisting on it."""
    copies = [cache / "qlora-orchestrator" / "trials" / socket.gethostname() for cache in night.caches]
    assert any(path.is_dir() for path in copies[:2])
    assert not copies[2].exists()
    left = [path for folder in copies[:2] if folder.is_dir() for path in folder.iterdir()]
    assert not [path for path in left if is_alive(int(path.name.split("-")[0]))]


def test_the_store_holds_what_the_trials_have_and_no_more(night: Night) -> None:
    assert not night.store.names("lock/")
    assert not night.store.names("probe/")
    for trial in evaluations(night.store):
        snapshot = TrialSnapshotStore(night.store, f"trials/{trial}").read()
        assert snapshot is not None
        assert snapshot.owner is None
        assert "ending.json" in snapshot.files
        assert len(night.store.names(f"trials/{trial}/objects/")) == len(snapshot.objects)


def test_report_and_export_work_from_a_machine_that_has_never_seen_it(night: Night, tmp_path: Path) -> None:
    env = {**night.env, "XDG_CACHE_HOME": str(tmp_path)}
    before, search = night.store.modified("report.html"), night.store.modified("search.json")
    report = run_command([sys.executable, "-m", "orchestrator.report", RUN], timeout=600, **env)
    assert report.returncode == 0, report.stderr
    assert night.store.modified("report.html") > before
    assert night.store.modified("search.json") == search  # of which a search elsewhere may know more
    export = run_command(
        [sys.executable, "-m", "orchestrator.export", RUN, "--to", str(tmp_path / "to")], timeout=600, **env
    )
    assert export.returncode == 0, export.stderr
    sent = (tmp_path / "to" / "adapter_model.safetensors").read_bytes()
    assert sent == night.store.read("export/adapter_model.safetensors")


def test_a_place_that_is_taken_is_refused(night: Night) -> None:
    taken = run_command(small_search("--out", RUN), timeout=600, **night.env)
    assert taken.returncode == 2
    assert f"{RUN} holds another search. Go on with it by --resume {RUN}" in taken.stderr
