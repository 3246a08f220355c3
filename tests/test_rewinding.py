"""A trial's folder put back to a checkpoint: what stands afterwards, and that nothing was lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint_case import FINGERPRINT, evaluate, trained
from trials import rewinding
from trials.checkpoints import choose_checkpoint, whole_checkpoints
from trials.config import TrialConfig
from trials.errors import DataError, RunFolderError
from trials.files import write_text
from trials.records import Ending, EndingKind, Origin, TrialFolder, TrialRecord, read_trial
from trials.rewinding import refuse_other_rows, refuse_to_resume, rewind

FINISHED = Ending(EndingKind.FINISHED, "trained for all its 6 steps")
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
    evaluate(TrialFolder(record.folder), 5, 3.0, 3.0)
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
            Ending(EndingKind.OUT_OF_MEMORY, "no room"),
            None,
            r"\(out_of_memory: no room\)\. Go back .* one of: 2, 4, 6\.",
        ),
        (Ending(EndingKind.EARLY_STOPPED, "worse"), None, r"\(early_stopped: worse\)\."),
    ],
)
def test_a_trial_that_is_over_does_not_go_on(make: Make, ending: Ending, step: int | None, message: str) -> None:
    with pytest.raises(RunFolderError, match=message):
        refuse_to_resume(make(ending=ending), step)


@pytest.mark.parametrize(
    ("ending", "step"),
    [(None, None), (None, 6), (FINISHED, 4), (Ending(EndingKind.FAILED, "a bug"), 6)],
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
