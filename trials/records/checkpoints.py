"""Checkpoints of a trial on disk: all that it needs to resume as if it had never stopped. Needs no torch.

trials/<id>/checkpoints/checkpoint-<step>/  adapter, optimizer, schedule, random state and log, as transformers has them
    adapter_average.safetensors  the adapter's average, with the names of the adapter's file, where one is kept
    best_adapter/      the best adapter at that step, with its point.json
    eval_rows.json     loss of every eval row at that best evaluation
    checkpoint.json    `Progress`, and the size of every other file; a folder that disagrees with it is no checkpoint
trials/<id>/checkpoints/broken-<step>/      a folder that disagreed, kept aside

For rank 32 on all linear layers of a 7B model, 84 million parameters, a checkpoint is 0.5 GB: four bytes a parameter
for the adapter and two for an 8-bit optimizer's state. A 32-bit optimizer's state takes eight, and makes it 1 GB. The
adapter's average takes four more. The best adapter is a second name (a hard link) for existing files. It takes space of
its own, 0.3 GB, once a better one has replaced it.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from trials.errors import RunFolderError
from trials.records.trial_dir import EVAL_ROWS_FILE, TrialDir, eval_rows_file, step_of
from trials.system.damage import DamagedFile, read_as
from trials.system.files import link_file, link_folder, make_folder, move, replace_folder, write_json
from trials.system.timer import TrialTimer

BEST_ADAPTER = "best_adapter"
AVERAGE = "adapter_average.safetensors"
_FOLDER = "checkpoints"
_MARKER = "checkpoint.json"
_WEIGHTS = "adapter_model.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogState:
    """Training loss that is summed up and not yet logged, and the step that was logged last."""

    step: int
    loss_sum: float | None
    """Sum over steps of the loss in nats per token; None: it isn't finite."""


@dataclass(frozen=True)
class Progress:
    """State of a trial at a checkpoint beyond transformers' own files; seconds as in `TrialTimer`."""

    step: int
    seconds: float
    training_seconds: float
    base_eval_loss: float
    log: LogState


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    progress: Progress

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step


@dataclass(frozen=True)
class _Marker:
    progress: Progress
    files: Mapping[str, int]


_MARKERS = TypeAdapter(_Marker)


def resumed_timer(checkpoint: Checkpoint | None) -> TrialTimer:
    """Return the timer of a trial that resumes from a checkpoint, or of a new one if that is None."""
    if checkpoint is None:
        return TrialTimer()
    return TrialTimer(checkpoint.progress.seconds, checkpoint.progress.training_seconds)


class CheckpointWriter:
    """Writer of one trial's checkpoints, each whole or not at all."""

    def __init__(self, folder: TrialDir, timer: TrialTimer, base_eval_loss: float, keep: int | None) -> None:
        self._folder = folder.path
        self._is_written = folder.is_written
        self._timer = timer
        self._base_eval_loss = base_eval_loss
        self._keep = keep

    @property
    def unfinished(self) -> Path:
        """Folder in which a checkpoint is written, under its own name, before it is moved to its place."""
        return self._folder / _FOLDER / "unfinished"

    def write(self, step: int, log: LogState, save: Callable[[], None]) -> None:
        """Write a checkpoint, and remove the oldest beyond the number to keep.

        `save` writes transformers' files to `unfinished`. The time that this takes does not count as training time.
        """
        if not self._is_written:
            return
        with self._timer.paused():
            watch = self._timer
            progress = Progress(step, watch.seconds, watch.training_seconds, self._base_eval_loss, log)
            shutil.rmtree(self.unfinished, ignore_errors=True)
            make_folder(self.unfinished)
            save()
            made = self.unfinished / f"checkpoint-{step}"
            self._add_best(made, step)
            _complete(made, progress)
            replace_folder(made, self._folder / _FOLDER / made.name)
            self._remove_old(made)

    def _remove_old(self, beside: Path) -> None:
        for old in whole_checkpoints(self._folder)[: -self._keep] if self._keep else []:
            # It is moved away first, so that a half-removed folder isn't found among the checkpoints.
            old.path.rename(beside)
            shutil.rmtree(beside)

    def _add_best(self, made: Path, step: int) -> None:
        best = self._folder / "adapter"
        if not best.is_dir():
            return
        link_folder(best, made / BEST_ADAPTER)
        if (rows := eval_rows_file(self._folder)).is_file():
            link_file(rows, made / EVAL_ROWS_FILE)
        if step_of(best) == step:
            # The same weights: evaluations come before checkpoints, and are of the average if there is one.
            evaluated = AVERAGE if (made / AVERAGE).exists() else _WEIGHTS
            link_file(best / _WEIGHTS, made / evaluated)


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return a trial's checkpoints that are whole, by step."""
    found = (_read(path, step) for step, path in _named(folder))
    return [checkpoint for checkpoint in found if checkpoint is not None]


def choose_checkpoint(folder: Path, step: int | None) -> Checkpoint:
    """Return the checkpoint to resume from: that of `step`, or the newest if it is None. Changes nothing.

    Raises `RunFolderError` if there is no whole checkpoint, or none of that step.
    """
    whole = whole_checkpoints(folder)
    if not whole:
        raise RunFolderError(
            f"{folder} holds no whole checkpoint: machine.checkpoint_every_rows asked for none, or it was cut off "
            "before the first. Start the trial anew, in another folder."
        )
    if step is None:
        return whole[-1]
    for checkpoint in whole:
        if checkpoint.step == step:
            return checkpoint
    known = ", ".join(str(checkpoint.step) for checkpoint in whole)
    raise RunFolderError(f"{folder} holds no whole checkpoint of step {step}. Give --checkpoint one of: {known}.")


def average_in(checkpoint: Path) -> Path:
    """Return the file with the adapter's average. Raises `RunFolderError` if the checkpoint has none."""
    file = checkpoint / AVERAGE
    if not file.is_file():
        raise RunFolderError(
            f"{checkpoint} holds no average of the adapter: hyperparameters.adapter_average was 0 then."
        )
    return file


def broken_checkpoints(folder: Path) -> list[Path]:
    """Return folders named as checkpoints that are none: half-written, or damaged later."""
    return [path for step, path in _named(folder) if _read(path, step) is None]


def set_broken_aside(folder: Path) -> None:
    """Rename folders named as checkpoints that are none: half-written, or damaged later."""
    for step, path in _named(folder):
        if _read(path, step) is None:
            names = (f"broken-{step}", *(f"broken-{step}-{again}" for again in range(2, 1000)))
            aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
            move(path, aside)
            logger.warning("checkpoint %d is not whole, and not used; it's %s now", step, aside)


def move_newer_checkpoints(folder: Path, step: int, target: Path) -> None:
    """Move the checkpoints after a step into another trial's folder."""
    for newer, path in _named(folder):
        if newer > step:
            make_folder(target / _FOLDER)
            move(path, target / _FOLDER / path.name)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a trial."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def _named(folder: Path) -> list[tuple[int, Path]]:
    names = ((_NAME.fullmatch(path.name), path) for path in (folder / _FOLDER).glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in names if match is not None)


def _complete(made: Path, progress: Progress) -> None:
    sizes = {str(path.relative_to(made)): path.stat().st_size for path in made.rglob("*") if path.is_file()}
    write_json(made / _MARKER, asdict(_Marker(progress, sizes)))


def _read(path: Path, step: int) -> Checkpoint | None:
    try:
        marker = read_as(path / _MARKER, _MARKERS)
        if marker is None:
            return None
        whole = all((path / name).stat().st_size == size for name, size in marker.files.items())
    except (OSError, DamagedFile):
        return None
    return Checkpoint(path, marker.progress) if whole and marker.progress.step == step else None
