"""Run folders on a store from the command line's side: working copies made, brought up to date, and left alone."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.storage.locations import (
    address_of,
    create_run,
    exclusive_access,
    fetch_weights,
    open_run,
    refuse_taken_place,
    upload,
)
from orchestrator.storage.mirror import Mirror, copies, working_copy
from orchestrator.storage.object_store import ObjectStore
from orchestrator.storage.trial_snapshots import SMALL_BYTES
from orchestrator.storage.visibility import UNSEEN
from orchestrator.storage.working_copy import RemoteTrial, working_copy_of
from tests.support.fake_search import point, record
from tests.trials.system.test_locks import end, proxy
from trials.config import TrialConfig
from trials.errors import RunFolderError
from trials.records.trial_dir import Ending, Origin, TrialDir
from trials.state import TrialState
from trials.system.locks import exclusive_lock
from trials.training.outcome import TrialInterrupted

WEIGHTS = b"weights" * SMALL_BYTES


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    move_to("first", tmp_path, monkeypatch)
    return f"file://{tmp_path / 'store' / 'night'}"


def move_to(machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process does from now on, it does as if on another machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))


def begin(url: str, search: Search) -> Mirror:
    """A run folder on the store, with its search."""
    run = create_run(url)
    run.write_search(search)
    mirror = Mirror(url, run.path)
    mirror.push_files()
    return mirror


def handed_over(mirror: Mirror, config: TrialConfig) -> TrialDir:
    """A new trial, which its worker has from now on."""
    folder = TrialDir(mirror.path / "trials" / "0001")
    folder.begin(config, Origin.PROPOSED, "proposed")
    mirror.grant(folder.path, "worker")
    return folder


def train(mirror: Mirror, config: TrialConfig) -> None:
    """One trial with one evaluation, put on the store by its worker."""
    folder = handed_over(mirror, config)
    with working_copy_of(*request(mirror)) as copy:
        worker = TrialDir(copy.path)
        record(worker, point(2.0, 100))
        (copy.path / "adapter" / "adapter_model.safetensors").write_bytes(WEIGHTS)
        copy.push()
        worker.end(Ending(TrialState.FINISHED, "made up"))
    mirror.revoke(folder.path, "worker")


def request(mirror: Mirror) -> tuple[Path, RemoteTrial]:
    return mirror.path / "trials" / "0001", RemoteTrial(mirror.store.url, "trials/0001", "worker")


def test_a_search_is_found_again_from_another_machine(
    url: str, search: Search, small_config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = begin(url, search)
    train(mirror, small_config)
    move_to("second", tmp_path, monkeypatch)
    run = open_run(url)
    assert run.path == working_copy(url) != mirror.path
    assert address_of(run) == url
    assert run.read_search() == mirror_search(mirror)
    (trial,) = run.records()
    assert (trial.tokens_seen, trial.ending) == (100, Ending(TrialState.FINISHED, "made up"))
    weights = trial.adapter / "adapter_model.safetensors"
    assert weights.stat().st_size == len(WEIGHTS)
    assert weights.read_bytes() != WEIGHTS
    fetch_weights(trial)
    assert weights.read_bytes() == WEIGHTS
    assert not list((copies() / "trials").glob("*/*"))


def mirror_search(mirror: Mirror) -> Search:
    return RunDir(mirror.path).read_search()


def test_what_a_command_makes_is_published_the_manifest_last(url: str, search: Search) -> None:
    mirror = begin(url, search)
    made = ["export/README.md", "export/adapter_model.safetensors", "export/manifest.json", "report.html"]
    for name in [*made, "export.new/half", "study.db-journal", "session.json", "ray/0001/error.txt", ".marker-1"]:
        (mirror.path / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror.path / name).write_text(name)
    upload(RunDir(mirror.path))
    assert mirror.store.names() == sorted([*made, "search.json"])
    times = {name: mirror.store.modified(name) for name in made}
    assert times["export/manifest.json"] == max(times.values())


def test_a_taken_place_is_refused_and_a_new_one_is_not(url: str, search: Search) -> None:
    refuse_taken_place(url)
    begin(url, search)
    with pytest.raises(RunFolderError, match=f"{url} holds another search. Go on with it by --resume {url}"):
        refuse_taken_place(url)
    ObjectStore(f"{url}2").write("letter.txt", b"")
    with pytest.raises(RunFolderError, match=r"is not empty: letter\.txt is there"):
        refuse_taken_place(f"{url}2")
    with pytest.raises(RunFolderError, match=r"holds no search.*Give a run folder"):
        open_run(f"{url}2")


def test_a_working_copy_of_a_search_that_is_not_on_the_store_any_more_is_set_aside(url: str, search: Search) -> None:
    before = begin(url, search)
    before.store.remove(before.store.names())
    (before.path / "mine").touch()
    run = create_run(url)
    assert [path.name for path in run.path.iterdir() if path.is_file()] == ["store.json"]
    assert len(list(run.path.parent.glob("*/mine"))) == 1


def test_a_search_at_work_on_this_machine_is_looked_at_and_left_alone(
    url: str, search: Search, small_config: TrialConfig
) -> None:
    mirror = begin(url, search)
    TrialDir(mirror.path / "trials" / "0001").begin(small_config, Origin.PROPOSED, "not on the store yet")
    other = proxy(mirror.path)
    try:
        assert [trial.id for trial in open_run(url).records()] == ["0001"]
        with pytest.raises(RunFolderError, match="in use"), exclusive_access(RunDir(mirror.path)):
            pass
    finally:
        end(other)
    assert open_run(url).records() == []


def test_a_search_at_work_elsewhere_is_not_joined(
    url: str, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = begin(url, search)
    with exclusive_access(RunDir(mirror.path)):
        move_to("second", tmp_path, monkeypatch)
        run = open_run(url)
        with pytest.raises(RunFolderError, match=f"{url} is in use by process"), exclusive_access(run):
            pass
    with exclusive_access(run):
        pass


def test_a_folder_is_what_it_was(tmp_path: Path, search: Search) -> None:
    path = tmp_path / "run"
    refuse_taken_place(str(path))
    run = create_run(str(path))
    run.write_search(search)
    assert address_of(open_run(str(path))) == str(path)
    before = sorted(path.rglob("*"))
    upload(run)
    assert sorted(path.rglob("*")) == before
    with exclusive_access(run), pytest.raises(RunFolderError), exclusive_lock(path):
        pass


def test_a_worker_that_lost_its_trial_or_the_store_was_cut_off(
    url: str, search: Search, small_config: TrialConfig
) -> None:
    mirror = begin(url, search)
    folder = handed_over(mirror, small_config)
    with working_copy_of(*request(mirror)) as copy:
        copy.push()
        mirror.revoke(folder.path, "worker")
        record(TrialDir(copy.path), point(2.0, 100))
        with pytest.raises(TrialInterrupted, match="belongs to None, not to worker"):
            copy.push()
        TrialDir(copy.path).end(Ending(TrialState.FAILED, "as it was cut off"))
    mirror.pull(folder.path)
    (trial,) = RunDir(mirror.path).records()
    assert (trial.points, trial.ending) == ((), None)


def test_a_trial_that_was_stopped_puts_nothing_more_on_the_store(
    url: str, search: Search, small_config: TrialConfig
) -> None:
    mirror = begin(url, search)
    folder = handed_over(mirror, small_config)
    with working_copy_of(*request(mirror)) as copy:
        record(TrialDir(copy.path), point(2.0, 100))
        copy.push()
        copy.detach()
        (copy.path / "late").touch()
        copy.push()
        TrialDir(copy.path).end(Ending(TrialState.FAILED, "too late"))
    mirror.pull(folder.path)
    assert not (folder.path / "late").exists()
    assert not (folder.path / "ending.json").exists()
    assert len(RunDir(mirror.path).records()[0].points) == 1


def test_copies_of_killed_processes_are_removed_and_those_of_others_are_not(
    url: str, search: Search, small_config: TrialConfig
) -> None:
    mirror = begin(url, search)
    here, dead_pid = copies() / "trials" / socket.gethostname(), 2**22 + 1
    dead, alive = (here / f"{pid}-owner" / "0009" for pid in (dead_pid, 1))
    elsewhere = here.with_name("another-machine") / f"{dead_pid}-owner" / "0009"
    for path in (dead, alive, elsewhere):
        path.mkdir(parents=True)
    train(mirror, small_config)
    assert not dead.parent.exists()
    assert alive.exists()
    assert elsewhere.exists()  # machines may share a home


def test_a_copy_whose_process_has_no_number_here_is_left_alone_while_it_lives(
    url: str, search: Search, small_config: TrialConfig
) -> None:
    """As in another container of the same host name."""
    mirror = begin(url, search)
    copy = copies() / "trials" / socket.gethostname() / f"{2**22 + 1}-owner"
    (copy / "0009").mkdir(parents=True)
    (copy.parent / "notes-of-mine").mkdir()
    other = proxy(copy)
    try:
        train(mirror, small_config)
        assert (copy / "0009").exists()
    finally:
        end(other)
    assert (copy.parent / "notes-of-mine").exists()


def test_a_working_copy_that_another_search_is_about_to_use_is_not_moved_away(url: str, search: Search) -> None:
    working_copy(url).mkdir(parents=True)
    other = proxy(working_copy(url))
    try:
        with pytest.raises(RunFolderError, match="is in use by process"):
            create_run(url)
    finally:
        end(other)
    create_run(url)


def test_a_trial_in_a_folder_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.storage.visibility._SEEN_SECONDS", 0.2)
    with pytest.raises(RunFolderError, match=UNSEEN), working_copy_of(tmp_path, None):
        pass
    (tmp_path / "config.json").touch()
    with working_copy_of(tmp_path, None) as copy:
        copy.push()
        assert copy.path == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
