"""Return of a trial's folder to its state at a checkpoint, with a copy of what came later. Needs no torch.

trials/<id>/before-<step>/  the trial as it was before it went back to <step>: a trial folder itself, with its config,
                            evaluations, best adapter, ending, and the checkpoints after that step

`restore_latest` does this for a trial of a search, which resumes from its newest checkpoint, or begins again.

The process may die in between. All that is replaced has its copy in `before-<step>` first, and the same command (or,
once no later checkpoint is left, a plain --resume) does the rest.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from trials.errors import DataError, RunFolderError
from trials.records.checkpoints import (
    BEST_ADAPTER,
    Checkpoint,
    move_newer_checkpoints,
    set_broken_aside,
    whole_checkpoints,
)
from trials.records.trial_dir import EVAL_ROWS_FILE, Ending, Origin, TrialRecord, read_trial, step_of
from trials.state import TrialState
from trials.system.files import (
    link_file,
    link_folder,
    move,
    read_json_lines,
    recover_folder,
    remove_folder,
    replace_folder,
    sync_folder,
    write_text,
)

_LINES = ("metrics.jsonl", "score_rows.jsonl")
_FILES = ("config.json", *_LINES, EVAL_ROWS_FILE, "ending.json")


def refuse_to_resume(record: TrialRecord, step: int | None) -> None:
    """Raise `RunFolderError` for a trial of a search, and for one that has ended, unless `step` is an earlier one."""
    folder, ending = record.folder, record.ending
    if record.origin is not Origin.SINGLE:
        raise RunFolderError(
            f"{folder} is a trial of a search. Go on with that: python -m orchestrator.search --resume RUN."
        )
    if ending is None or (step is not None and not _is_its_end(record, ending, step)):
        return
    said = f"{folder} has ended already ({ending.kind.value}: {ending.reason})"
    earlier = [str(found.step) for found in whole_checkpoints(folder) if not _is_its_end(record, ending, found.step)]
    if not earlier:
        raise RunFolderError(f"{said}, and holds no earlier checkpoint. Start a new trial, in another folder.")
    raise RunFolderError(f"{said}. Go back to an earlier step by --checkpoint, one of: {', '.join(earlier)}.")


def _is_its_end(record: TrialRecord, ending: Ending, step: int) -> bool:
    """Return whether nothing is left to train after a step."""
    return ending.kind is TrialState.FINISHED and step >= max((point.step for point in record.points), default=0)


def restore_latest(folder: Path) -> Checkpoint | None:
    """Make the newest whole checkpoint of a search's trial the last thing on record, and return it.

    None if there is none: the trial begins again, with nothing on record, and its earlier state is in `before-0`. A
    trial that was paused at its checkpoint is unchanged. Only the folder's owner may call this, with no other process
    writing. Raises `RunFolderError` for a trial that has ended, and for one of no search.
    """
    recover_folder(folder / "adapter")
    record = read_trial(folder)
    if record.origin is Origin.SINGLE:
        raise RunFolderError(f"{folder} is no trial of a search. Go on with it: python -m trials.train --resume.")
    if record.ending is not None:
        raise RunFolderError(
            f"{folder} has ended already ({record.ending.kind.value}: {record.ending.reason}). Only a trial that was "
            "paused or cut off goes on."
        )
    return restore_newest_checkpoint(record)


def restore_newest_checkpoint(record: TrialRecord) -> Checkpoint | None:
    """Do what `restore_latest` does for a trial of any origin.

    Its folder must have passed through `trials.system.files.recover_folder` before it was read.
    """
    set_broken_aside(record.folder)
    newest = next(iter(whole_checkpoints(record.folder)[::-1]), None)
    if newest is None:
        _begin_again(record)
    else:
        rewind(record, newest)
    return newest


def _begin_again(record: TrialRecord) -> None:
    folder = record.folder
    shutil.rmtree(folder / "adapter.new", ignore_errors=True)
    if not (record.points or record.scorings or any((folder / name).exists() for name in ("adapter", EVAL_ROWS_FILE))):
        return
    _keep(folder, 0)
    _remove_best(folder)
    for name in _LINES:
        (folder / name).unlink(missing_ok=True)


def refuse_other_rows(record: TrialRecord, fingerprint: str) -> None:
    """Raise `DataError` if these aren't the rows that the trial began with."""
    if record.fingerprint not in (None, fingerprint):
        raise DataError(
            f"the data or the tokenizer has changed since the trial in {record.folder} began. Restore it and resume, "
            "or start a new trial, in another folder."
        )


def rewind(record: TrialRecord, checkpoint: Checkpoint) -> Path | None:
    """Make the checkpoint the last thing on record of a trial; return the folder with its earlier state.

    None if nothing had come after the checkpoint.
    """
    folder, step = record.folder, checkpoint.step
    recover_folder(folder / "adapter")
    shutil.rmtree(folder / "adapter.new", ignore_errors=True)
    newer = [found for found in whole_checkpoints(folder) if found.step > step]
    steps = [*(point.step for point in record.points), *(scoring.step for scoring in record.scorings)]
    if not (newer or record.ending or max(steps, default=0) > step or _has_lost_best(folder, checkpoint)):
        return None
    before = _keep(folder, step)
    # In this order, because a later checkpoint must not remain with cut evaluations, nor an ending without them.
    move_newer_checkpoints(folder, step, before)
    (folder / "ending.json").unlink(missing_ok=True)
    _restore_best(folder, checkpoint)
    for name in _LINES:
        _cut(folder / name, step)
    return before


def _keep(folder: Path, step: int) -> Path:
    """Copy the trial as it is, without its checkpoints; the adapter's files only get a second name."""
    beside = folder / "before.new"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    for name in _FILES:
        if (folder / name).exists():
            shutil.copy2(folder / name, beside / name)
    if (folder / "adapter").exists():
        link_folder(folder / "adapter", beside / "adapter")
    names = (f"before-{step}", *(f"before-{step}-{again}" for again in range(2, 1000)))
    kept = next(folder / name for name in names if not (folder / name).exists())
    sync_folder(beside)
    move(beside, kept)
    return kept


def _has_lost_best(folder: Path, checkpoint: Checkpoint) -> bool:
    """Return whether the best adapter is missing or unknown in the folder, and is in the checkpoint."""
    return (checkpoint.path / BEST_ADAPTER).exists() and step_of(folder / "adapter") is None


def _restore_best(folder: Path, checkpoint: Checkpoint) -> None:
    adapter, best = folder / "adapter", checkpoint.path / BEST_ADAPTER
    if not best.exists():  # no evaluation before the checkpoint
        _remove_best(folder)
        return
    if not adapter.exists() or step_of(adapter) != step_of(best):
        beside = folder / "adapter.new"
        shutil.rmtree(beside, ignore_errors=True)
        link_folder(best, beside)
        replace_folder(beside, adapter)
    if (rows := checkpoint.path / EVAL_ROWS_FILE).is_file():  # else they were damaged when the checkpoint was made
        link_file(rows, folder / EVAL_ROWS_FILE)


def _remove_best(folder: Path) -> None:
    remove_folder(folder / "adapter")
    (folder / EVAL_ROWS_FILE).unlink(missing_ok=True)


def _is_up_to(line: dict[str, Any], step: int) -> bool:
    return isinstance(line.get("step"), int) and line["step"] <= step


def _cut(path: Path, step: int) -> None:
    """Keep only the lines up to a step."""
    if path.exists():
        kept = [line for line in read_json_lines(path) if _is_up_to(line, step)]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
