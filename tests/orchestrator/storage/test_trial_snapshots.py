"""Trials on a store: real files in, the same files out, whatever is cut short."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.storage.object_store import ObjectStore
from orchestrator.storage.placeholders import content_of
from orchestrator.storage.trial_snapshots import SMALL_BYTES, StaleOwnerError, TrialSnapshotStore
from tests.support.fake_search import point, row_losses
from trials.config import TrialConfig
from trials.errors import StoreDamaged, StoreFailed
from trials.records.checkpoints import CheckpointWriter, LogState, whole_checkpoints
from trials.records.rewind import restore_latest
from trials.records.trial_dir import EvalPoint, Origin, TrialDir, TrialRecord, read_trial
from trials.system.files import append_json_line, link_folder
from trials.system.timer import TrialTimer

Files = dict[str, bytes]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path / 'store'}", waits=())


@pytest.fixture
def trial(store: ObjectStore) -> TrialSnapshotStore:
    return TrialSnapshotStore(store, "trials/0001")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trial's folder with files of both sizes."""
    folder = tmp_path / "worker" / "0001"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "adapter" / "weights").write_bytes(weights("first"))
    return folder


def weights(seed: str) -> bytes:
    return (seed * SMALL_BYTES).encode()


def content(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def again(store: ObjectStore) -> TrialSnapshotStore:
    """The same trial, as another process sees it."""
    return TrialSnapshotStore(store, "trials/0001")


def objects(store: ObjectStore) -> list[str]:
    return store.names("trials/0001/objects/")


def test_what_was_put_comes_back_in_place_of_what_was_there(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path
) -> None:
    trial.push(folder, owner=None, becomes=None)
    other = tmp_path / "other"
    (other / "gone").mkdir(parents=True)
    (other / "gone" / "file").touch()
    (other / "config.json").write_text("other")
    again(store).pull(other, whole=True)
    assert content(other) == content(folder)
    assert not (other / "gone").exists()


def test_a_trial_that_is_not_there_changes_nothing(trial: TrialSnapshotStore, folder: Path) -> None:
    before = content(folder)
    assert trial.pull(folder, whole=True) is None
    assert content(folder) == before


def test_only_what_changed_is_written_and_what_nobody_has_any_more_is_removed(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path
) -> None:
    (folder / "other").write_bytes(weights("other"))
    trial.push(folder, owner=None, becomes=None)
    written = {name: store.modified(name) for name in objects(store)}
    (folder / "adapter" / "weights").write_bytes(weights("second"))
    os.link(folder / "adapter" / "weights", folder / "best")
    trial.push(folder, owner=None, becomes=None)
    now = {name: store.modified(name) for name in objects(store)}
    assert len(now) == len(written) == 2
    (kept,) = set(now) & set(written)
    assert now[kept] == written[kept]
    index = store.modified("trials/0001/index.json")
    trial.push(folder, owner=None, becomes=None)
    assert store.modified("trials/0001/index.json") == index


def test_unfinished_files_stay_behind(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path
) -> None:
    for name in ("adapter.new", "checkpoints/unfinished"):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").touch()
    trial.push(folder, owner=None, becomes=None)
    again(store).pull(tmp_path / "other", whole=True)
    assert set(content(tmp_path / "other")) == {"config.json", "adapter/weights"}


def test_a_push_that_is_cut_short_leaves_the_last_evaluation(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path
) -> None:
    trial.push(folder, owner=None, becomes=None)
    before = content(folder)
    (folder / "adapter" / "weights").write_bytes(weights("second"))
    index = tmp_path / "store" / "trials" / "0001" / "index.json"
    index.unlink()
    index.mkdir()  # so that it can't be written
    with pytest.raises(StoreFailed, match="go on by --resume"):
        trial.push(folder, owner=None, becomes=None)
    index.rmdir()
    (folder / "adapter" / "weights").write_bytes(before["adapter/weights"])
    again(store).push(folder, owner=None, becomes=None)
    assert len(objects(store)) == 2
    claimed = again(store)
    claimed.claim()
    assert len(objects(store)) == 1
    claimed.pull(tmp_path / "other", whole=True)
    assert content(tmp_path / "other") == before


def test_who_lost_a_trial_cannot_write_to_it(store: ObjectStore, trial: TrialSnapshotStore, folder: Path) -> None:
    trial.push(folder, owner=None, becomes="worker")
    cut_off = again(store)
    cut_off.push(folder, owner="worker", becomes="worker")
    trial.pull(folder, whole=False)
    trial.push(folder, owner="worker", becomes=None)
    trial.push(folder, owner=None, becomes="another")
    (folder / "late").touch()
    with pytest.raises(StaleOwnerError):
        cut_off.push(folder, owner="worker", becomes="worker")
    found = trial.read()
    assert found is not None
    assert "late" not in found.files
    assert found.owner == "another"
    trial.claim()
    claimed = trial.read()
    assert claimed is not None
    assert claimed.owner is None


def test_a_reader_that_an_evaluation_overtakes_gets_that_one(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path
) -> None:
    trial.push(folder, owner=None, becomes=None)
    reader = again(store)
    read = reader.read

    def overtaken() -> object:
        found = read()
        (folder / "adapter" / "weights").write_bytes(weights("second"))
        trial.push(folder, owner=None, becomes=None)
        return found

    reader.read = overtaken  # type: ignore[assignment,method-assign]
    reader.pull(tmp_path / "other", whole=True)
    assert content(tmp_path / "other") == content(folder)


def train(folder: Path, config: TrialConfig) -> TrialRecord:
    """Two evaluations, each with its checkpoint, as a trial leaves them; weights are made up."""
    trial = TrialDir(folder)
    trial.begin(config, Origin.PROPOSED, "proposed")
    writer = CheckpointWriter(trial, TrialTimer(), 3.0, None)
    for tokens in (100, 200):
        evaluation: EvalPoint = point(3.0 - tokens / 1000, tokens)

        def save_adapter(path: Path, tokens: int = tokens) -> None:
            (path / "adapter_config.json").write_text("{}")
            (path / "adapter_model.safetensors").write_bytes(weights(f"adapter {tokens}"))

        def save(step: int = evaluation.step) -> None:
            made = writer.unfinished / f"checkpoint-{step}"
            made.mkdir(parents=True)
            (made / "adapter_model.safetensors").write_bytes(weights(f"adapter {100 * step}"))
            (made / "optimizer.pt").write_bytes(weights(f"optimizer {step}"))

        trial.record(evaluation, row_losses(evaluation.eval_loss), save_adapter)
        writer.write(evaluation.step, LogState(0, None), save)
    return read_trial(folder)


def test_a_trial_goes_back_without_its_weights_and_they_are_all_there_afterwards(
    store: ObjectStore, trial: TrialSnapshotStore, small_config: TrialConfig, tmp_path: Path
) -> None:
    """What the controller does on a machine that has placeholders gives what it would have given with the weights."""
    worker, driver, other = (tmp_path / name / "0001" for name in ("worker", "driver", "other"))
    train(worker, small_config)
    (worker / "checkpoints" / "checkpoint-2" / "optimizer.pt").write_bytes(b"damaged")
    trial.push(worker, owner=None, becomes=None)

    on_driver = again(store)
    on_driver.pull(driver, whole=False)
    stood_in = {path.name for path in driver.rglob("*") if path.is_file() and content_of(path)}
    assert stood_in == {"adapter_model.safetensors", "optimizer.pt"}
    assert [checkpoint.step for checkpoint in whole_checkpoints(driver)] == [1]
    used = sum(path.stat().st_blocks * 512 for path in driver.rglob("*.safetensors"))
    assert used < sum(path.stat().st_size for path in worker.rglob("*.safetensors")) / 5
    assert restore_latest(driver) == whole_checkpoints(driver)[0]
    on_driver.push(driver, owner=None, becomes=None)
    again(store).pull(other, whole=True)

    restore_latest(worker)
    assert content(other) == content(worker)
    assert (other / "adapter" / "adapter_model.safetensors").read_bytes() == weights("adapter 100")
    adapter = other / "checkpoints" / "checkpoint-1" / "adapter_model.safetensors"
    assert adapter.stat().st_nlink > 1  # as on the worker, one file under several names
    assert read_trial(driver).points == read_trial(worker).points


def test_weights_come_where_placeholders_were(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path
) -> None:
    trial.push(folder, owner=None, becomes=None)
    on_driver, copy = again(store), tmp_path / "driver"
    on_driver.pull(copy, whole=False)
    link_folder(copy / "adapter", copy / "second")
    on_driver.push(copy, owner=None, becomes=None)
    on_driver.pull(copy, whole=True)
    assert (copy / "second" / "weights").read_bytes() == weights("first")
    assert (copy / "adapter" / "weights").read_bytes() == weights("first")


def test_a_placeholder_is_never_put_on_the_store_as_weights(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path
) -> None:
    trial.push(folder, owner=None, becomes=None)
    trial.pull(tmp_path / "driver", whole=False)
    with pytest.raises(StoreFailed, match="on no store any more"):
        TrialSnapshotStore(store, "trials/0002").push(tmp_path / "driver", owner=None, becomes=None)
    assert store.names("trials/0002/") == []


def test_large_records_are_read_on_the_driver_too(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path
) -> None:
    for _ in range(2000):
        append_json_line(folder / "metrics.jsonl", {"step": 1, "eval_loss": 2.0, "some_longer_name": 1.0})
    assert (folder / "metrics.jsonl").stat().st_size > SMALL_BYTES
    trial.push(folder, owner=None, becomes=None)
    again(store).pull(tmp_path / "driver", whole=False)
    assert (tmp_path / "driver" / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_a_removed_trial_is_gone(store: ObjectStore, trial: TrialSnapshotStore, folder: Path) -> None:
    trial.push(folder, owner=None, becomes=None)
    trial.remove()
    assert store.names() == []


def change_index(tmp_path: Path, changed: Callable[[dict[str, Any]], None]) -> None:
    """What somebody else who can write to the store may do."""
    index = tmp_path / "store" / "trials" / "0001" / "index.json"
    content = json.loads(index.read_text())
    changed(content)
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    [
        "../../authorized_keys",
        "/etc/passwd",
        "adapter/../../x",
        "adapter//x",
        ".",
        "..",
        "",
        "a\0b",
        "a\nb",
        "a\\..\\b",
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_name_that_leads_out_of_the_trial_is_refused_before_anything_is_written(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path, name: str, whole: bool
) -> None:
    trial.push(folder, owner=None, becomes=None)
    change_index(tmp_path, lambda content: content["files"].update({name: content["files"]["config.json"]}))
    target = tmp_path / "a" / "b" / "0001"
    target.mkdir(parents=True)
    with pytest.raises(StoreDamaged, match=r"trials/0001/index.json names a file .*relative, without '\.\.'"):
        again(store).pull(target, whole=whole)
    assert not content(tmp_path / "a")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", "../../../objects"),
        ("sha256", "A" * 64),
        ("sha256", "0" * 64),
        ("sha256", None),
        ("size", -1),
        ("size", "7"),
        ("size", True),
        ("content", "!"),
        ("content", "YWJj"),
        ("content", 7),
        ("more", 1),
    ],
)
def test_a_hash_or_a_content_that_is_none_is_refused(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path, field: str, value: object
) -> None:
    trial.push(folder, owner=None, becomes=None)
    change_index(tmp_path, lambda content: content["files"]["config.json"].update({field: value}))
    with pytest.raises(StoreDamaged, match=r"trials/0001/index\.json is damaged"):
        again(store).pull(tmp_path / "other", whole=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"owner": null}', '{"owner": 1, "files": {}}'])
def test_an_index_that_is_none_is_refused(store: ObjectStore, tmp_path: Path, text: str) -> None:
    store.write("trials/0001/index.json", text.encode())
    with pytest.raises(StoreDamaged, match=r"trials/0001/index\.json is damaged"):
        again(store).read()


def test_a_content_that_is_not_what_was_put_there_is_refused(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path
) -> None:
    trial.push(folder, owner=None, becomes=None)
    (name,) = objects(store)
    store.write(name, weights("other"))
    with pytest.raises(StoreDamaged, match=f"{name} isn't what was put there: its SHA-256 is"):
        again(store).pull(tmp_path / "other", whole=True)
    assert "adapter/weights" not in content(tmp_path / "other")


def test_a_link_here_does_not_lead_out_of_the_trial(
    store: ObjectStore, trial: TrialSnapshotStore, folder: Path, tmp_path: Path
) -> None:
    trial.push(folder, owner=None, becomes=None)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreDamaged, match="by a link"):
        again(store).pull(tmp_path / "other", whole=True)
    assert not list((tmp_path / "elsewhere").iterdir())
