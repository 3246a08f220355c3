"""The store itself: a real S3 server, and what is said where it can't be used."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from orchestrator.storage.locations import check_store, create_run
from orchestrator.storage.object_store import QUICK, ObjectStore
from tests.support.s3_server import BUCKET, S3Server, s3_server
from trials.errors import RunFolderError, StoreDamaged, StoreFailed


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["s3", "file"])
def store(
    request: pytest.FixtureRequest, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    reach(server, monkeypatch)
    return ObjectStore(f"s3://{BUCKET}/{tmp_path.name}" if request.param == "s3" else f"file://{tmp_path}/store", ())


def reach(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # they keep the address that they were made with
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def test_objects_come_and_go(store: ObjectStore) -> None:
    check_store(store)
    assert store.names() == []
    store.write("a/b.json", b"one")
    store.write("a/b.json", b"two")
    store.write("c", b"")
    assert store.read("a/b.json") == b"two"
    assert store.names() == ["a/b.json", "c"]
    assert store.names("a/") == ["a/b.json"]
    assert abs((datetime.now(UTC) - store.modified("c")).total_seconds()) < 60
    store.remove(["a/b.json", "never there"])
    assert store.names() == ["c"]
    for ask in (store.read, store.modified):
        with pytest.raises(FileNotFoundError):
            ask("a/b.json")


def test_files_are_copied_there_and_back(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 1000)
    store.upload({f"deep/{number}": source for number in range(20)})
    store.download({f"deep/{number}": tmp_path / "to" / str(number) for number in range(20)})
    assert all((tmp_path / "to" / str(number)).read_bytes() == source.read_bytes() for number in range(20))
    assert len(list((tmp_path / "to").iterdir())) == 20


def test_one_of_many_that_create_an_object_at_once_makes_it(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda number: store.create("lock", str(number).encode()), range(8)))
    assert made.count(True) == 1
    assert store.read("lock") == str(made.index(True)).encode()
    assert store.create("lock", store.read("lock"))  # asked again, as its answer was lost


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def test_an_outage_is_sat_out(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    reach(S3Server(f"http://127.0.0.1:{port}"), monkeypatch)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)

    import s3fs

    def come_back() -> None:
        time.sleep(2)
        server.start()
        s3fs.S3FileSystem().makedirs(BUCKET, exist_ok=True)

    back = threading.Thread(target=come_back)
    back.start()
    try:
        store = ObjectStore(f"s3://{BUCKET}/run")
        store.write("a", b"written")
        assert store.read("a") == b"written"
    finally:
        back.join()
        server.stop()


def test_a_store_that_stays_away_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reach(S3Server(f"http://127.0.0.1:{free_port()}"), monkeypatch)
    with pytest.raises(StoreFailed, match=r"can't read a on s3://.*Could not connect.*go on by --resume"):
        ObjectStore(f"s3://{BUCKET}/away", ()).read("a")


def test_a_bucket_that_is_not_there_is_refused(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    reach(server, monkeypatch)
    with pytest.raises(RunFolderError, match=r"can't use s3://absent/run: NoSuchBucket.*Check the bucket's name"):
        create_run("s3://absent/run")


def test_missing_credentials_are_named(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reach(server, monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(RunFolderError, match=r"Unable to locate credentials.*AWS_ACCESS_KEY_ID"):
        check_store(ObjectStore(f"s3://{BUCKET}/run", QUICK))


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/run", "s3fs"), ("gs://bucket/run", "gcsfs")])
def test_a_missing_package_is_named(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_registry, url.split(":", maxsplit=1)[0], raising=False)
    with pytest.raises(RunFolderError, match=f"needs the package {package}.*pip install {package}"):
        ObjectStore(url)


@pytest.mark.parametrize("url", ["ftp://host/run", "s3://bucket", "s3:///run", "gs://bucket/"])
def test_other_addresses_are_no_place_for_a_run_folder(url: str) -> None:
    with pytest.raises(RunFolderError, match=r"is no place for a run folder\. Give s3://BUCKET/PREFIX"):
        ObjectStore(url)


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_name_that_leads_elsewhere_is_refused(store: ObjectStore) -> None:
    store.write("trials/../../authorized_keys", b"")
    with pytest.raises(StoreDamaged, match=r"the listing of .* names a file 'trials/\.\./\.\./authorized_keys'"):
        store.names()
