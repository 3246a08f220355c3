"""A trial's folder put back to a checkpoint: what stands afterwards, and that nothing was lost."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoint_dirs import FINGERPRINT, evaluate, trained
from trials.config import TrialConfig
from trials.errors import DataError, RunFolderError
from trials.records import rewind as rewinding
from trials.records.checkpoints import choose_checkpoint, whole_checkpoints
from trials.records.rewind import refuse_other_rows, refuse_to_resume, restore_latest, rewind
from trials.records.trial_dir import Ending, Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState
from trials.system.files import write_text

FINISHED = Ending(TrialState.FINISHED, "trained for all its 6 steps")
FALLING = (6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
Make = Callable[..., TrialRecord]


@pytest.fixture
def make(tmp_path: Path, small_config: TrialConfig) -> Make:
    """A trial of six evaluations with a checkpoint after every second step."""

    def of(losses: tuple[float, ...] = FALLING, **others: Any) -> TrialRecord:
        return trained(tmp_path / "trial", small_config, losses, **{"checkpoints": (2, 4, 6), **others})

    return of


def _weights(record: TrialRecord) -> str:
    return (record.adapter / "adapter_model.safetensors").read_text()


def _steps(record: TrialRecord) -> tuple[list[int], list[int], list[int]]:
    """Of evaluations, scorings and checkpoints."""
    checkpoints = [checkpoint.step for checkpoint in whole_checkpoints(record.folder)]
    return [point.step for point in record.points], [found.step for found in record.scorings], checkpoints


def test_everything_after_the_checkpoint_is_moved_aside(make: Make) -> None:
    before = make(ending=FINISHED)
    kept = rewind(before, choose_checkpoint(before.folder, 2))
    assert kept == before.folder / "before-2"
    after, aside = read_trial(before.folder), read_trial(kept)
    assert (after.ending, aside.ending) == (None, FINISHED)
    assert _steps(after) == ([1, 2], [1, 2], [2])
    assert _steps(aside) == ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [4, 6])
    assert after.points == before.points[:2]
    assert aside.points == before.points
    assert aside.config == after.config == before.config
    assert (_weights(after), _weights(aside)) == ("weights of step 2", "weights of step 6")
    rows = [record.row_losses() for record in (after, aside)]
    assert [found.mean for found in rows if found] == [5.0, 1.0]
    # What goes on writes here must not reach what was kept.
    point = json.loads((after.adapter / "point.json").read_text())
    assert point["step"] == 2


def test_a_best_adapter_before_the_checkpoint_stays(make: Make) -> None:
    record = make((3.0, 1.0, 4.0, 5.0, 6.0, 7.0))
    inode = (record.adapter / "adapter_model.safetensors").stat().st_ino
    rewind(record, choose_checkpoint(record.folder, 4))
    after = read_trial(record.folder)
    assert _steps(after)[0] == [1, 2, 3, 4]
    assert (after.best_eval_loss, _weights(after)) == (1.0, "weights of step 2")
    assert (after.adapter / "adapter_model.safetensors").stat().st_ino == inode


def test_the_best_of_what_is_left_may_be_older_than_the_checkpoint(make: Make) -> None:
    record = make((1.0, 4.0, 3.0, 2.0, 0.5, 0.4))
    assert _weights(record) == "weights of step 6"
    rewind(record, choose_checkpoint(record.folder, 4))
    after = read_trial(record.folder)
    assert (after.best_eval_loss, _weights(after)) == (1.0, "weights of step 1")
    rows = after.row_losses()
    assert rows is not None
    assert rows.mean == 1.0


def test_before_the_first_evaluation_there_is_no_adapter(tmp_path: Path, small_config: TrialConfig) -> None:
    record = trained(tmp_path / "trial", small_config, (), checkpoints=(2,))
    evaluate(TrialDir(record.folder), 5, 3.0, 3.0)
    kept = rewind(read_trial(record.folder), choose_checkpoint(record.folder, None))
    after = read_trial(record.folder)
    assert (after.points, after.row_losses(), after.has_adapter) == ((), None, False)
    assert kept is not None
    assert read_trial(kept).has_adapter


def test_where_nothing_came_later_nothing_is_kept(make: Make) -> None:
    record = make()
    assert rewind(record, choose_checkpoint(record.folder, None)) is None
    assert read_trial(record.folder) == record
    assert not list(record.folder.glob("before*"))


def test_an_evaluation_that_only_its_adapter_remembers_is_later_too(make: Make) -> None:
    record = make((3.0, 2.0, 1.0), checkpoints=(2,))
    lines = (record.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    write_text(record.folder / "metrics.jsonl", "".join(lines[:2]))  # died before its line was written
    assert rewind(read_trial(record.folder), choose_checkpoint(record.folder, None)) is not None
    assert _steps(read_trial(record.folder))[0] == [1, 2]
    assert _weights(read_trial(record.folder)) == "weights of step 2"


def test_going_back_twice_keeps_both(make: Make) -> None:
    record = make(ending=FINISHED)
    first = rewind(record, choose_checkpoint(record.folder, 4))
    second = rewind(read_trial(record.folder), choose_checkpoint(record.folder, 2))
    assert first is not None
    assert second is not None
    assert _steps(read_trial(first))[2] == [6]
    assert _steps(read_trial(second))[2] == [4]
    again = rewind(read_trial(record.folder), choose_checkpoint(record.folder, 2))
    assert again is None
    (record.folder / "ending.json").write_text((first / "ending.json").read_text())
    again = rewind(read_trial(record.folder), choose_checkpoint(record.folder, 2))
    assert again is not None
    assert again.name == "before-2-2"


@pytest.mark.parametrize("at", ["_keep", "move_newer_checkpoints", "_restore_best", "_cut"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_cut_off_in_between_the_next_resume_does_the_rest(
    make: Make, monkeypatch: pytest.MonkeyPatch, at: str, done: bool
) -> None:
    record = make(ending=FINISHED)
    real = getattr(rewinding, at)

    def cut_off(*arguments: Any) -> None:
        if done:
            real(*arguments)
        raise KeyboardInterrupt

    checkpoint = choose_checkpoint(record.folder, 2)
    with monkeypatch.context() as patched:
        patched.setattr(rewinding, at, cut_off)
        with pytest.raises(KeyboardInterrupt):
            rewind(record, checkpoint)
    left = read_trial(record.folder)
    step = 2 if left.ending else None  # as the user has to say it
    refuse_to_resume(left, step)
    rewind(left, choose_checkpoint(left.folder, step))
    after = read_trial(record.folder)
    assert _steps(after) == ([1, 2], [1, 2], [2])
    assert (after.ending, _weights(after)) == (None, "weights of step 2")
    kept = [read_trial(path) for path in record.folder.glob("before-*")]
    assert max(len(found.points) for found in kept) == 6
    assert "weights of step 6" in {_weights(found) for found in kept}
    assert {step for found in kept for step in _steps(found)[2]} == {4, 6}


@pytest.mark.parametrize(
    ("ending", "step", "message"),
    [
        (FINISHED, None, r"has ended already \(finished: trained for all its 6 steps\)\. Go back .* one of: 2, 4\."),
        (FINISHED, 6, r"Go back to an earlier step by --checkpoint, one of: 2, 4\."),
        (
            Ending(TrialState.OUT_OF_MEMORY, "no room"),
            None,
            r"\(out_of_memory: no room\)\. Go back .* one of: 2, 4, 6\.",
        ),
        (Ending(TrialState.EARLY_STOPPED, "worse"), None, r"\(early_stopped: worse\)\."),
    ],
)
def test_a_trial_that_is_over_does_not_go_on(make: Make, ending: Ending, step: int | None, message: str) -> None:
    with pytest.raises(RunFolderError, match=message):
        refuse_to_resume(make(ending=ending), step)


@pytest.mark.parametrize(
    ("ending", "step"),
    [(None, None), (None, 6), (FINISHED, 4), (Ending(TrialState.FAILED, "a bug"), 6)],
)
def test_what_does_go_on(make: Make, ending: Ending | None, step: int | None) -> None:
    refuse_to_resume(make(ending=ending), step)


def test_a_trial_that_is_over_and_has_no_earlier_checkpoint(make: Make) -> None:
    with pytest.raises(RunFolderError, match=r"and holds no earlier checkpoint\. Start a new trial"):
        refuse_to_resume(make(checkpoints=(6,), ending=FINISHED), None)


def test_a_trial_of_a_search_goes_on_with_the_search(make: Make) -> None:
    with pytest.raises(RunFolderError, match=r"is a trial of a search\. .*orchestrator\.search --resume RUN"):
        refuse_to_resume(make(origin=Origin.PROPOSED), None)


def test_other_rows_are_refused(make: Make) -> None:
    record = make()
    refuse_other_rows(record, FINGERPRINT)
    with pytest.raises(DataError, match=r"the data or the tokenizer has changed since the trial in .* began\. Restore"):
        refuse_other_rows(record, "others")


def _tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Everything in a folder, with when it was changed."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


def test_a_paused_trial_of_a_search_stays_as_it_is_and_costs_little(make: Make) -> None:
    record = make(origin=Origin.PROPOSED)
    before = _tree(record.folder)
    took = []
    for _ in range(20):
        began = time.perf_counter()
        found = restore_latest(record.folder)
        took.append(time.perf_counter() - began)
        assert found is not None
        assert found.step == 6
    assert _tree(record.folder) == before
    assert min(took) < 0.02  # measured: 2 ms


@pytest.mark.parametrize("origin", [Origin.PROPOSED, Origin.START])
def test_a_trial_that_was_cut_off_goes_back_to_its_newest_checkpoint(make: Make, origin: Origin) -> None:
    record = make(checkpoints=(2, 4), origin=origin)
    found = restore_latest(record.folder)
    assert found is not None
    assert found.step == 4
    after, kept = read_trial(record.folder), read_trial(record.folder / "before-4")
    assert (after.points, kept.points) == (record.points[:4], record.points)
    assert (_weights(after), _weights(kept)) == ("weights of step 4", "weights of step 6")
    before = _tree(record.folder)
    assert restore_latest(record.folder) == found
    assert _tree(record.folder) == before


def test_a_checkpoint_that_is_not_whole_is_passed_over(make: Make) -> None:
    record = make(origin=Origin.PROPOSED)
    (record.folder / "checkpoints" / "checkpoint-6" / "optimizer.pt").write_text("half")
    found = restore_latest(record.folder)
    assert found is not None
    assert found.step == 4
    assert _steps(read_trial(record.folder)) == ([1, 2, 3, 4], [1, 2, 3, 4], [2, 4])
    assert (record.folder / "checkpoints" / "broken-6").is_dir()


def _nothing_is_on_record(folder: Path) -> bool:
    record = read_trial(folder)
    files = {path.name for path in folder.iterdir() if not path.name.startswith("before")}
    return _steps(record) == ([], [], []) and files <= {"config.json", "checkpoints"}


def test_without_a_whole_checkpoint_it_begins_again(tmp_path: Path, small_config: TrialConfig) -> None:
    folder = tmp_path / "trial"
    record = trained(folder, small_config, (3.0, 1.0, 2.0), checkpoints=(2,), origin=Origin.PROPOSED)
    (folder / "checkpoints" / "checkpoint-2" / "checkpoint.json").unlink()
    assert len(record.scorings) == 3
    assert restore_latest(folder) is None
    assert _nothing_is_on_record(folder)
    kept = read_trial(folder / "before-0")
    assert (kept.points, kept.scorings, kept.config) == (record.points, record.scorings, record.config)
    assert _weights(kept) == "weights of step 2"
    before = _tree(folder)
    assert restore_latest(folder) is None
    assert _tree(folder) == before


def test_a_base_whose_only_evaluation_was_cut_off_begins_again(tmp_path: Path, small_config: TrialConfig) -> None:
    folder = TrialDir(tmp_path / "base")
    folder.begin(small_config, Origin.BASE, "base")
    assert restore_latest(folder.path) is None
    assert not list(folder.path.glob("before*"))
    evaluate(folder, 0, 3.0, 3.0)
    assert restore_latest(folder.path) is None
    assert _nothing_is_on_record(folder.path)
    assert read_trial(folder.path / "before-0").points[0].step == 0


@pytest.mark.parametrize("at", ["_keep", "_remove_best", "recover_folder", "shutil"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_cut_off_while_it_begins_again_the_next_call_does_the_rest(
    tmp_path: Path, small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch, at: str, done: bool
) -> None:
    folder = tmp_path / "trial"
    record = trained(folder, small_config, (3.0, 1.0, 2.0), checkpoints=(9,), origin=Origin.PROPOSED)
    shutil.rmtree(folder / "checkpoints")
    where, name = (shutil, "rmtree") if at == "shutil" else (rewinding, at)
    real = getattr(where, name)

    def cut_off(*arguments: Any, **more: Any) -> None:
        if done:
            real(*arguments, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(where, name, cut_off)
        with pytest.raises(KeyboardInterrupt):
            restore_latest(folder)
    assert restore_latest(folder) is None
    assert _nothing_is_on_record(folder)
    kept = [read_trial(path) for path in folder.glob("before-*")]
    assert max((found.points for found in kept), key=len) == record.points
    assert "weights of step 2" in {_weights(found) for found in kept if found.has_adapter}


def test_a_trial_that_is_over_or_of_no_search_does_not_go_back(make: Make, tmp_path: Path) -> None:
    record = make(ending=FINISHED, origin=Origin.PROPOSED)
    before = _tree(record.folder)
    with pytest.raises(
        RunFolderError, match=r"has ended already \(finished: .*\)\. Only a trial that was paused or cut off"
    ):
        restore_latest(record.folder)
    assert _tree(record.folder) == before
    shutil.rmtree(record.folder)
    with pytest.raises(RunFolderError, match=r"no trial of a search\. Go on with it: python -m trials.train"):
        restore_latest(make().folder)
