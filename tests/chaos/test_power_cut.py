"""A kill or a power cut at every change that a writer makes to the disk: the old or the new is read, and it goes on.

Nothing is trained: real writers and readers, made-up weights. An export with a real proof is in test_export.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.export.target import recover_export, staging_beside
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.state.selection import pick_best
from tests.orchestrator.export.test_target import make_export
from tests.support.checkpoint_dirs import evaluate, trained, write_checkpoint
from tests.support.fake_search import make_run
from tests.support.power_cut import Disk, every_cut, in_memory, watched
from trials.config import TrialConfig
from trials.metrics.row_losses import RowLosses
from trials.records.adapter_check import adapter_problem
from trials.records.checkpoints import choose_checkpoint, set_broken_aside, whole_checkpoints
from trials.records.export_manifest import read_manifest
from trials.records.rewind import restore_latest
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState
from trials.system.files import append_json_line, make_folder, recover_folder, replace_folder, write_json, write_text

pytestmark = pytest.mark.slow

__all__ = ["in_memory"]
BASE_LOSSES = RowLosses([9.0, 9.0], [1, 1])


def _begin(root: Path, config: TrialConfig) -> TrialDir:
    folder = TrialDir(root / "trials" / "0001")
    folder.begin(config, Origin.PROPOSED, "proposed")
    return folder


def _weights(adapter: Path) -> str:
    return (adapter / "adapter_model.safetensors").read_text()


def _assert_one_evaluation(record: TrialRecord, steps: set[int]) -> None:
    """Loss, row losses and weights are those of one evaluation, and it can be exported."""
    best = record.best_point
    assert best is not None
    assert best.step in steps
    assert adapter_problem(record.adapter) is None
    assert _weights(record.adapter) == f"weights of step {best.step}"
    losses = record.row_losses()
    assert losses is not None
    assert losses.mean == best.eval_loss
    base = TrialDir(record.folder.parent / "0000")
    base.path.mkdir(exist_ok=True)
    (base.path / "config.json").write_text((record.folder / "config.json").read_text().replace("proposed", "base"))
    base.record(EvalPoint(0, 0, BASE_LOSSES.mean, BASE_LOSSES.mean, 1.0), BASE_LOSSES, None)
    assert pick_best([read_trial(base.path), record]).loss == best.eval_loss


def test_a_trial_that_begins(in_memory: Path, small_config: TrialConfig) -> None:
    def check(root: Path) -> None:
        path = root / "trials" / "0001"
        if not (path / "config.json").exists():
            _begin(root, small_config)
        assert read_trial(path).config == small_config

    assert every_cut(in_memory, lambda _: None, lambda root: _begin(root, small_config) and None, check) >= 20


def test_the_first_evaluation(in_memory: Path, small_config: TrialConfig) -> None:
    def check(root: Path) -> None:
        folder = TrialDir(root / "trials" / "0001")
        recover_folder(folder.adapter)
        record = read_trial(folder.path)
        if record.points:
            _assert_one_evaluation(record, {1})
        evaluate(folder, 2, 2.0, 2.0)
        _assert_one_evaluation(read_trial(folder.path), {2})

    def act(root: Path) -> None:
        evaluate(TrialDir(root / "trials" / "0001"), 1, 3.0, 3.0)

    assert every_cut(in_memory, lambda root: _begin(root, small_config) and None, act, check) >= 80


@pytest.mark.parametrize("is_settled", [True, False], ids=["read after a resume", "read as it lies there"])
def test_a_better_evaluation(in_memory: Path, small_config: TrialConfig, is_settled: bool) -> None:
    def prepare(root: Path) -> None:
        evaluate(_begin(root, small_config), 1, 3.0, 3.0)

    def check(root: Path) -> None:
        folder = TrialDir(root / "trials" / "0001")
        if is_settled:
            recover_folder(folder.adapter)
        _assert_one_evaluation(read_trial(folder.path), {1, 2})
        evaluate(folder, 3, 1.0, 1.0)
        _assert_one_evaluation(read_trial(folder.path), {3})

    def act(root: Path) -> None:
        evaluate(TrialDir(root / "trials" / "0001"), 2, 2.0, 2.0)

    assert every_cut(in_memory, prepare, act, check) >= 100


def test_an_evaluation_after_a_replacement_that_was_cut(in_memory: Path, small_config: TrialConfig) -> None:
    """The only adapter has its old name when the next one comes."""

    def prepare(root: Path) -> None:
        folder = _begin(root, small_config)
        evaluate(folder, 1, 3.0, 3.0)
        folder.adapter.rename(folder.path / "adapter.old")

    def check(root: Path) -> None:
        _assert_one_evaluation(read_trial(root / "trials" / "0001"), {1, 2})

    def act(root: Path) -> None:
        evaluate(TrialDir(root / "trials" / "0001"), 2, 2.0, 2.0)

    every_cut(in_memory, prepare, act, check)


def test_an_ending(in_memory: Path, small_config: TrialConfig) -> None:
    ending = Ending(TrialState.FINISHED, "all steps")

    def prepare(root: Path) -> None:
        evaluate(_begin(root, small_config), 1, 3.0, 3.0)

    def check(root: Path) -> None:
        folder = TrialDir(root / "trials" / "0001")
        assert read_trial(folder.path).ending in (None, ending)
        folder.end(ending)
        assert read_trial(folder.path).ending == ending

    every_cut(in_memory, prepare, lambda root: TrialDir(root / "trials" / "0001").end(ending), check)


def test_a_checkpoint(in_memory: Path, small_config: TrialConfig) -> None:
    def prepare(root: Path) -> None:
        folder = _begin(root, small_config)
        evaluate(folder, 2, 3.0, 3.0)
        write_checkpoint(folder.path, 2, keep=1)
        evaluate(folder, 4, 2.0, 2.0)

    def check(root: Path) -> None:
        folder = root / "trials" / "0001"
        set_broken_aside(folder)
        found = choose_checkpoint(folder, None)
        assert found.step in (2, 4)
        assert (found.path / "optimizer.pt").read_text() == "state"
        for adapter in (found.path, found.path / "best_adapter"):
            assert _weights(adapter) == f"weights of step {found.step}"
        assert adapter_problem(found.path / "best_adapter") is None
        own = json.loads((found.path / "best_adapter" / "point.json").read_text())
        rows = json.loads((found.path / "eval_rows.json").read_text())
        assert (own["step"], own["eval_loss"]) == (found.step, rows["loss_sums"][0])
        _assert_one_evaluation(read_trial(folder), {4})
        write_checkpoint(folder, 6, keep=1)
        assert [each.step for each in whole_checkpoints(folder)] == [6]

    def act(root: Path) -> None:
        write_checkpoint(root / "trials" / "0001", 4, keep=1)

    assert every_cut(in_memory, prepare, act, check) >= 100


@pytest.mark.parametrize("checkpoints", [[1, 2], []], ids=["to a checkpoint", "to the beginning"])
def test_a_trial_that_goes_back(in_memory: Path, small_config: TrialConfig, checkpoints: list[int]) -> None:
    def prepare(root: Path) -> None:
        path = root / "trials" / "0001"
        trained(path, small_config, [3.0, 2.0, 1.0], checkpoints=checkpoints or [0], origin=Origin.PROPOSED)

    def check(root: Path) -> None:
        path = root / "trials" / "0001"
        newest = restore_latest(path)
        record = read_trial(path)
        if newest is None:
            assert (record.points, record.has_adapter) == ((), False)
        else:
            assert newest.step == 2
            _assert_one_evaluation(record, {2})
        kept = [read_trial(before) for before in path.glob("before-*")]
        assert "weights of step 3" in {_weights(each.adapter) for each in kept if each.has_adapter}

    def act(root: Path) -> None:
        restore_latest(root / "trials" / "0001")

    assert every_cut(in_memory, prepare, act, check) >= 100


def test_the_search_file(in_memory: Path, search: Search) -> None:
    longer = replace(search, full_tokens=search.full_tokens + 1)

    def check(root: Path) -> None:
        run = RunDir(root / "run")
        assert run.read_search().full_tokens in (search.full_tokens, longer.full_tokens)
        run.write_search(longer)
        assert run.read_search().full_tokens == longer.full_tokens

    def act(root: Path) -> None:
        RunDir(root / "run").write_search(longer)

    every_cut(in_memory, lambda root: make_run(root / "run", search) and None, act, check)


@pytest.mark.parametrize("has_earlier", [True, False], ids=["over an earlier one", "the first"])
def test_an_export_that_is_put_in_its_place(in_memory: Path, has_earlier: bool) -> None:
    def prepare(root: Path) -> None:
        if has_earlier:
            make_export(root / "models", "old")

    def put(root: Path, content: str) -> None:
        with staging_beside(root / "models", root / "run", may_set_aside=False) as staging:
            staging.empty("export").rmdir()
            staging.put_in_place(make_export(staging.path / "export", content))

    def check(root: Path) -> None:
        target = root / "models"
        recover_export(target)
        assert target.exists() or not has_earlier
        if target.exists():
            assert read_manifest(target) is not None
            assert _weights(target) in ("old", "new")
        put(root, "newer")
        assert _weights(target) == "newer"

    assert every_cut(in_memory, prepare, lambda root: put(root, "new"), check) >= 50


def _folder(root: Path) -> Path:
    (root / "new").mkdir()
    (root / "new" / "a").write_text("a")
    return root / "new"


def _replaced(root: Path) -> None:
    replace_folder(_folder(root), root / "kept")


REPLACED = ["mkdir new", "open new/a", "write new/a", "sync new/a", "sync new"]


@pytest.mark.parametrize(
    ("act", "order"),
    [
        (
            lambda root: write_text(root / "file", "text"),
            ["open .file.*.new", "write .file.*.new", "sync .file.*.new", "rename .file.*.new file", "sync ."],
        ),
        (
            lambda root: write_json(root / "old", {}),
            ["open .old.*.new", "write .old.*.new", "sync .old.*.new", "rename .old.*.new old", "sync ."],
        ),
        (lambda root: append_json_line(root / "lines", {}), ["open lines", "write lines", "sync lines", "sync ."]),
        (lambda root: append_json_line(root / "old", {}), ["open old", "write old", "sync old"]),
        (lambda root: make_folder(root / "a" / "b"), ["mkdir a", "mkdir a/b", "sync a", "sync ."]),
        (
            lambda root: replace_folder(_folder(root), root / "target"),
            [*REPLACED, "rename new target", "sync ."],
        ),
        (
            _replaced,
            [
                *REPLACED,
                "rename kept .kept.replaced",
                "rename new kept",
                "sync .",
                "unlink .kept.replaced/a",
                "rmdir .kept.replaced",
            ],
        ),
    ],
    ids=["write_text", "write_json", "first line", "next line", "make_folder", "new folder", "replace_folder"],
)
def test_content_is_synced_before_the_name_and_the_name_before_anything_else(
    tmp_path: Path, act: Callable[[Path], object], order: list[str]
) -> None:
    (tmp_path / "old").write_text("{}\n")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("old")
    with watched(Disk(tmp_path)) as disk:
        act(tmp_path)
    assert disk.log == order


def test_an_adapter_is_synced_before_its_evaluation_is_on_record(tmp_path: Path, small_config: TrialConfig) -> None:
    folder = _begin(tmp_path, small_config)
    with watched(Disk(folder.path)) as disk:
        evaluate(folder, 1, 3.0, 3.0)
    in_place = disk.log.index("rename adapter.new adapter")
    weights = [line for line in disk.log[:in_place] if line.endswith("adapter_model.safetensors")]
    assert [line.split()[0] for line in weights] == ["open", "write", "sync"]
    assert disk.log[in_place - 1 : in_place + 2] == ["sync adapter.new", "rename adapter.new adapter", "sync ."]
    assert disk.log.index("open metrics.jsonl") > in_place
