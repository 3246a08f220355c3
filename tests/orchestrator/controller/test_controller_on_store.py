"""A controller on a store: it acts on what workers put there, and another machine goes on from there alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from orchestrator.controller.controller import SearchController
from orchestrator.controller.failure_policy import DIED, TrialExit
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.storage.locations import create_run, open_run
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.run_storage import ObjectStorage, storage_of
from orchestrator.storage.trial_snapshots import TrialSnapshotStore
from orchestrator.storage.working_copy import working_copy_of
from tests.support.fake_search import BASE_LOSS, Clock, begin, point, record
from trials.records.trial_dir import Ending, Origin, TrialDir, read_trial
from trials.state import TrialState


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    return f"file://{tmp_path / 'store' / 'night'}"


@pytest.fixture
def controller(url: str, search: Search) -> SearchController:
    run = create_run(url)
    run.write_search(dataclasses.replace(search, shortened=1.0))
    return conduct(run)


def conduct(run: RunDir) -> SearchController:
    storage = storage_of(run.path)
    assert isinstance(storage, ObjectStorage)
    return SearchController(run, run.read_search(), 2, lambda _: None, Clock(), storage=storage)


def work(controller: SearchController, request: TrialRequest, *losses: float, ends: bool = True) -> None:
    """What a worker on another machine does, up to its end or until it dies."""
    with working_copy_of(request.folder, request.remote) as copy:
        folder = TrialDir(copy.path)
        for number, loss in enumerate(losses, 1):
            evaluation = point(loss, 0 if request.origin is Origin.BASE else 100 * number)
            record(folder, evaluation, base=request.origin is Origin.BASE)
            copy.push()
            controller.on_result(request.trial_id, evaluation)
        if ends:
            folder.end(Ending(TrialState.FINISHED, "made up"))
    controller.on_trial_end(request.trial_id, TrialExit() if ends else DIED)


def test_it_acts_on_what_workers_put_on_the_store(controller: SearchController, url: str) -> None:
    store = Mirror(url, Path()).store
    base = begin(controller)
    assert "search.json" in store.names()
    assert base.remote is not None
    assert not (base.folder / "metrics.jsonl").exists()
    work(controller, base, BASE_LOSS)
    assert read_trial(base.folder).best_eval_loss == BASE_LOSS
    start = begin(controller)
    work(controller, start, 2.5, 2.0)
    found = read_trial(start.folder)
    assert [evaluation.eval_loss for evaluation in found.points] == [2.5, 2.0]
    assert found.ending == Ending(TrialState.FINISHED, "made up")
    controller.close()
    assert "study.db" in store.names()


def test_another_machine_goes_on_where_this_one_was(
    controller: SearchController, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(controller, begin(controller), BASE_LOSS)
    start = begin(controller)
    assert start.remote is not None
    work(controller, start, 2.5)
    cut_off = begin(controller)  # its worker still has it when this controller dies
    assert cut_off.remote is not None

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    other = conduct(open_run(url))
    snapshot = TrialSnapshotStore(Mirror(url, Path()).store, cut_off.remote.name).read()
    assert snapshot is not None
    assert snapshot.owner is None
    again = begin(other)
    assert again.trial_id == cut_off.trial_id
    assert tmp_path / "second" in again.folder.parents
    assert read_trial(again.folder.parent / start.trial_id).best_eval_loss == 2.5


def test_a_trial_whose_worker_died_goes_on_from_what_it_had_put_there(controller: SearchController) -> None:
    work(controller, begin(controller), BASE_LOSS)
    start = begin(controller)
    work(controller, start, ends=False)
    again = begin(controller)
    assert again.trial_id == start.trial_id
    assert again.remote is not None
    assert start.remote is not None
    assert again.remote.owner != start.remote.owner


def test_a_trial_that_cannot_be_resumed_hands_its_slot_to_one_that_is_handed_over_once(
    controller: SearchController, url: str
) -> None:
    work(controller, begin(controller), BASE_LOSS)
    damaged = begin(controller)
    controller.on_trial_end(damaged.trial_id, DIED)  # so that it's resumed next
    (damaged.folder / "config.json").write_text("")
    following = begin(controller)
    assert following.trial_id != damaged.trial_id
    assert following.remote is not None
    snapshot = TrialSnapshotStore(Mirror(url, Path()).store, following.remote.name).read()
    assert snapshot is not None
    assert snapshot.owner == following.remote.owner
    work(controller, following, 2.0)


def test_a_run_in_weights_and_biases_keeps_its_id_on_the_store(
    url: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = search.recipe.model_copy(update={"tracking": search.recipe.tracking.model_copy(update={"wandb": True})})
    run = create_run(url)
    run.write_search(dataclasses.replace(search, recipe=recipe, shortened=1.0))
    controller = conduct(run)
    work(controller, begin(controller), BASE_LOSS)
    first = begin(controller)
    assert first.remote is not None
    assert first.remote.wandb_id is not None
    work(controller, first, ends=False)
    again = begin(controller)
    assert again.trial_id == first.trial_id
    assert again.remote is not None
    assert again.remote.wandb_id == first.remote.wandb_id
