"""One command at a time on a store: real leases, real processes, the store's own clock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.storage import lease
from orchestrator.storage.lease import run_lease
from orchestrator.storage.object_store import ObjectStore
from tests.support.cli import ROOT, environment
from tests.support.waiting import wait_until
from trials.errors import EXIT_INTERRUPTED, RunFolderError

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.storage import lease
from orchestrator.storage.object_store import ObjectStore
lease._RENEWED_SECONDS = 0.2
with lease.run_lease(ObjectStore(sys.argv[1]), Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def store(url: str) -> ObjectStore:
    return ObjectStore(url, waits=())


def owner(url: str, copy: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, url, copy],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_machine_is_refused_and_told_by_whom(store: ObjectStore) -> None:
    with run_lease(store, Path("/one")):
        held = rf"{store.url} is in use by process {os.getpid()} on "
        with pytest.raises(RunFolderError, match=held), run_lease(store, Path("/two")):
            pass
    with run_lease(store, Path("/two")):
        pass
    assert store.names() == []


def test_the_same_working_copy_is_free_at_once_when_its_holder_was_killed(store: ObjectStore, url: str) -> None:
    process = owner(url, "/copy")
    process.kill()
    process.communicate()
    with run_lease(store, Path("/copy")):
        assert len(store.names("lock/")) == 1


def test_another_machine_waits_until_a_killed_holder_is_forgotten(
    store: ObjectStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_DEAD_SECONDS", 5.0)
    process = owner(url, "/one")
    try:
        begun = store.modified("lock/1.json")
        assert wait_until(lambda: (store.modified("lock/1.json") - begun).total_seconds() > 5, 60)
        with pytest.raises(RunFolderError, match="in use"), run_lease(store, Path("/two")):
            pass
    finally:
        process.kill()
        process.communicate()
    assert wait_until(lambda: is_free(store), 60)


def is_free(store: ObjectStore) -> bool:
    try:
        with run_lease(store, Path("/two")):
            return True
    except RunFolderError:
        return False


def test_who_was_taken_over_ends(store: ObjectStore, url: str) -> None:
    process = owner(url, "/one")
    store.remove(store.names("lock/"))
    _, said = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert f"another command has taken over {url}" in said
    assert store.names("lock/") == []


def test_a_lease_whose_content_is_not_written_yet_is_held(store: ObjectStore) -> None:
    store.write("lock/1.json", b"")
    with pytest.raises(RunFolderError, match="is in use by another command"), run_lease(store, Path("/one")):
        raise AssertionError("two have it")
    assert store.names("lock/") == ["lock/1.json"]


def test_of_many_at_once_one_has_it_at_most(store: ObjectStore) -> None:
    inside, most, refused, lock = [0], [0], [0], threading.Lock()
    begin = threading.Barrier(8)

    def command(number: int) -> None:
        begin.wait()
        try:
            with run_lease(store, Path(f"/{number}")):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(0.2)
                with lock:
                    inside[0] -= 1
        except RunFolderError:
            refused[0] += 1

    threads = [threading.Thread(target=command, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert refused[0] > 0
