"""Folder of a trial, written and read. Needs neither torch nor Ray.

trials/<id>/config.json    origin, configuration, and the fingerprint of its rows
trials/<id>/metrics.jsonl  one `EvalPoint` a line, with the host name of the machine that made it (node)
trials/<id>/eval_rows.json loss of every eval row at the best evaluation, for paired comparison
trials/<id>/score_rows.jsonl  scores of answers, row by row, where they are asked for (trials.records.score_log)
trials/<id>/adapter/       best adapter so far, PEFT format, with its own eval_rows.json and point.json: the evaluation
                           that it had, and the size and SHA-256 of every file (trials.records.adapter_check)
trials/<id>/wandb_run      id of its run in Weights & Biases, where there is one (trials.tracking.trial_run)
trials/<id>/ending.json    how it ended; absent: it's running, paused or was cut off
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trials.config import TrialConfig
from trials.errors import RunFolderError
from trials.metrics.row_losses import RowLosses
from trials.records.adapter_check import POINT_FILE, describe_files, why_not_there
from trials.records.score_log import SCORINGS_FILE, ScoreRecord, read_scores
from trials.state import TrialState
from trials.system.damage import DamagedFile, Lines, read_as, read_lines_as
from trials.system.files import append_json_line, in_place, make_folder, replace_folder, sync_directory, write_json

METRICS_FILE, EVAL_ROWS_FILE, ENDING_FILE = "metrics.jsonl", "eval_rows.json", "ending.json"
_MOST = 2**53
"""Limit of every step, number of tokens, time and loss; SQLite has no larger whole numbers than 2**63."""


@dataclass(frozen=True)
class Damage:
    """What is wrong with one file of a trial; as text, it says what and the consequence."""

    file: str
    """Path in the trial's folder."""
    text: str
    is_gone: bool = False
    """Whether the file should be there and is not."""

    def __str__(self) -> str:
        """Return the text."""
        return self.text


class Origin(StrEnum):
    """Source of a trial's configuration."""

    BASE = "base"
    PROBE = "probe"
    """A few steps that only measure the speed."""
    START = "start"
    PROPOSED = "proposed"
    FINAL = "final"
    """A configuration of the search that is trained again, for longer, at its end."""
    SINGLE = "single"


@dataclass(frozen=True)
class Ending:
    """Terminal state of a trial, and the reason in a sentence. Raises `ValueError` for a state that isn't terminal."""

    kind: TrialState
    reason: str

    def __post_init__(self) -> None:
        if not self.kind.is_terminal:
            raise ValueError(f"a trial can't end as {self.kind}")


@dataclass(frozen=True)
class EvalPoint:
    """One evaluation. Losses are in nats per completion token.

    `seconds` are those since the trial began, evaluations included. `score` is the mean of the task's own measure over
    some eval rows, if asked for; it decides nothing.
    """

    step: int
    tokens_seen: int
    eval_loss: float
    best_eval_loss: float
    seconds: float
    train_loss: float | None = None
    tokens_per_second: float | None = None
    score: float | None = None
    score_seconds: float | None = None
    ranks: int = 1
    """Processes that trained the trial together at that time, a GPU each."""

    @property
    def flaw(self) -> str | None:
        """Reason why values from a damaged file can't be an evaluation; None: they can."""
        numbers = {name: number for name, number in asdict(self).items() if number is not None}
        beyond = (f"{name} is {number:g}" for name, number in numbers.items() if not 0 <= number < _MOST)
        return next(beyond, None)


@dataclass(frozen=True)
class DamagedTrial:
    """Folder of a trial that can't be used; `id` is its name, `reason` a sentence without a full stop."""

    id: str
    folder: Path
    reason: str


@dataclass(frozen=True)
class TrialRecord:
    """Trial as recorded in its folder."""

    id: str
    origin: Origin
    name: str
    config: TrialConfig
    points: tuple[EvalPoint, ...]
    ending: Ending | None
    folder: Path
    fingerprint: str | None = None
    """Fingerprint of the rows that the trial began with; None if none was recorded."""
    damage: tuple[Damage, ...] = ()
    """Unreadable parts of evaluations and ending, each with what counts in its place."""

    @property
    def state(self) -> TrialState:
        """Terminal state of the trial; without an ending it counts as paused, also if it runs."""
        return TrialState.PAUSED if self.ending is None else self.ending.kind

    @property
    def best_eval_loss(self) -> float | None:
        """Lowest eval loss so far, in nats per completion token; None before the first evaluation."""
        return None if self.best_point is None else self.best_point.eval_loss

    @property
    def best_point(self) -> EvalPoint | None:
        """Evaluation of the best adapter: the first with the lowest loss; None before the first evaluation."""
        return min(self.points, key=lambda point: point.eval_loss, default=None)

    @property
    def score(self) -> float | None:
        """Mean score at the latest evaluation that was scored; None if none was."""
        return next((point.score for point in reversed(self.points) if point.score is not None), None)

    @property
    def tokens_seen(self) -> int:
        """Unpadded training tokens so far."""
        return max((point.tokens_seen for point in self.points), default=0)

    @property
    def adapter(self) -> Path:
        """Folder of the best adapter so far; while that is being replaced, of the one before."""
        return in_place(self.folder / "adapter")

    @property
    def has_adapter(self) -> bool:
        """Whether the best adapter is still on disk, by the sizes of its files (see `trials.records.adapter_check`)."""
        return why_not_there(self.adapter) is None

    def row_losses(self) -> RowLosses | None:
        """Return the loss of every eval row at the best evaluation; None without one, or if it can't be read."""
        return read_row_losses(self.folder)

    @property
    def scorings(self) -> tuple[ScoreRecord, ...]:
        """Scores and losses of rows at every evaluation that was scored, in order; read at the first access."""
        return self._scorings.values

    def all_damage(self) -> tuple[Damage, ...]:
        """Return what of the trial's files can't be read, and the consequence. Reads all files but adapters'."""
        return (*self.damage, *_row_damage(self), *_damage_of(SCORINGS_FILE, self._scorings))

    @cached_property
    def _scorings(self) -> Lines[ScoreRecord]:
        return read_scores(self.folder)


class TrialDir:
    """Writer of one trial's folder; of several processes that train a trial, only the first writes."""

    def __init__(self, path: Path, *, is_written: bool = True) -> None:
        self.path = path
        self.is_written = is_written

    @property
    def adapter(self) -> Path:
        """Folder of the best adapter so far."""
        return self.path / "adapter"

    def refuse_taken(self) -> None:
        """Raise `RunFolderError` if the folder already holds a trial."""
        if (self.path / "config.json").exists():
            raise RunFolderError(f"{self.path} already holds a trial. Give another --out, or remove that folder.")

    def begin(self, config: TrialConfig, origin: Origin, name: str, fingerprint: str | None = None) -> None:
        """Make the folder, and write the trial's origin and configuration.

        `fingerprint` is `trials.data.dataset.TrialData.fingerprint`. Raises `RunFolderError` if the folder already
        holds a trial.
        """
        self.refuse_taken()
        make_folder(self.path)
        self._write_config(config, origin, name, fingerprint)

    def replace_config(self, config: TrialConfig) -> None:
        """Write another configuration in place of the one that the trial began with."""
        begun = _begun(self.path)
        self._write_config(config, begun.origin, begun.name, begun.data_fingerprint)

    def record(self, point: EvalPoint, losses: RowLosses, save_adapter: Callable[[Path], None] | None) -> None:
        """Write one evaluation to disk; the adapter comes first, so that a recorded best always has its adapter."""
        self.keep_if_best(point, losses, save_adapter)
        self.log(point)

    def keep_if_best(self, point: EvalPoint, losses: RowLosses, save_adapter: Callable[[Path], None] | None) -> None:
        """Write adapter and row losses of an evaluation if it is the best so far: the first half of `record`.

        `save_adapter` writes the adapter into the folder that it is given; None for the base model.
        """
        if self.is_written and point.eval_loss <= point.best_eval_loss:
            if save_adapter is not None:
                self._replace_adapter(save_adapter, point, losses)
            write_json(self.path / EVAL_ROWS_FILE, asdict(losses))

    def log(self, point: EvalPoint) -> None:
        """Append the evaluation's line to metrics.jsonl: the second half of `record`."""
        if self.is_written:
            append_json_line(self.path / METRICS_FILE, {**asdict(point), "node": socket.gethostname()})

    def end(self, ending: Ending) -> None:
        """Record how the trial ended, unless that is recorded already.

        The first record counts: the side that stops a trial knows the reason better than the trial.
        """
        path = self.path / ENDING_FILE
        if self.is_written and not path.exists():
            write_json(path, {"kind": ending.kind.value, "reason": ending.reason})

    def remove_ending(self) -> None:
        """Make a trial that has ended a paused one."""
        (self.path / ENDING_FILE).unlink(missing_ok=True)
        sync_directory(self.path)

    def _write_config(self, config: TrialConfig, origin: Origin, name: str, fingerprint: str | None) -> None:
        content: dict[str, Any] = {"origin": origin.value, "name": name, "config": config.model_dump(mode="json")}
        if fingerprint is not None:
            content["data_fingerprint"] = fingerprint
        write_json(self.path / "config.json", content)

    def _replace_adapter(self, save_adapter: Callable[[Path], None], point: EvalPoint, losses: RowLosses) -> None:
        beside = self.path / "adapter.new"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        save_adapter(beside)
        # The losses replace others together with the adapter, so that after a crash they are those of its weights.
        write_json(beside / EVAL_ROWS_FILE, asdict(losses))
        write_json(beside / POINT_FILE, {**asdict(point), "files": describe_files(beside)})
        replace_folder(beside, self.adapter)


def read_trial(folder: Path) -> TrialRecord:
    """Read one trial's folder, which may be written to meanwhile. Raises `RunFolderError` if it holds no trial."""
    begun = _begun(folder)
    points, point_damage = _points(folder)
    ending, ending_damage = _ending(folder)
    return TrialRecord(
        id=folder.name,
        origin=begun.origin,
        name=begun.name,
        config=begun.config,
        points=points,
        ending=ending,
        folder=folder,
        fingerprint=begun.data_fingerprint,
        damage=(*point_damage, *ending_damage),
    )


def eval_rows_file(folder: Path) -> Path:
    """Return the file with the loss of every eval row at a trial's best evaluation; it may not exist."""
    with_adapter, beside = _eval_rows_files(folder)
    return with_adapter if with_adapter.exists() else beside


def read_row_losses(folder: Path) -> RowLosses | None:
    """Return the loss of every eval row at a trial's best evaluation; None without one, or if it can't be read."""
    return _rows(folder)[0]


def read_point(adapter: Path) -> EvalPoint | None:
    """Return an adapter's evaluation; None if none was recorded. Raises `DamagedFile`."""
    return read_as(adapter / POINT_FILE, POINTS)


def step_of(adapter: Path) -> int | None:
    """Return the optimizer steps of an adapter; None: unknown."""
    try:
        point = read_point(adapter)
    except DamagedFile:
        return None
    return None if point is None else point.step


@dataclass(frozen=True)
class _Begun:
    """Content of config.json."""

    origin: Origin
    name: str
    config: TrialConfig
    data_fingerprint: str | None = None


_BEGUN = TypeAdapter(_Begun)
_ENDINGS = TypeAdapter(Ending)
POINTS = TypeAdapter(EvalPoint)
_ROWS = TypeAdapter(RowLosses)


def _begun(folder: Path) -> _Begun:
    try:
        begun = read_as(folder / "config.json", _BEGUN, strict=False)
    except DamagedFile as error:
        raise RunFolderError(
            f"{error.path} can't be read: {error.reason}. Restore it, or remove that trial's folder."
        ) from error
    if begun is None:
        raise RunFolderError(f"{folder} holds no trial: there is no config.json in it.")
    return begun


def _damage_of(name: str, lines: Lines[Any]) -> tuple[Damage, ...]:
    return tuple(Damage(name, text) for text in lines.damage)


def _unreadable(folder: Path, error: DamagedFile, consequence: str = "") -> Damage:
    name = error.path.relative_to(folder).as_posix()
    return Damage(name, f"{name} can't be read: {error.reason}{consequence}")


def _points(folder: Path) -> tuple[tuple[EvalPoint, ...], tuple[Damage, ...]]:
    """Return the evaluations in metrics.jsonl and the adapter's own, and what is damaged of them.

    The latter is missing in metrics.jsonl if the process died before it wrote the line.
    """
    lines = read_lines_as(folder / METRICS_FILE, POINTS)
    points = {(each.step, each.tokens_seen): each for each in reversed(lines.values)}
    damage = [*_damage_of(METRICS_FILE, lines)]
    if len(points) < len(lines.values):
        text = f"{METRICS_FILE} has evaluations of one step twice, of which the first counts"
        damage.append(Damage(METRICS_FILE, text))
    try:
        own = read_point(folder / "adapter")
    except DamagedFile as error:
        own = None
        damage.append(_unreadable(folder, error))
    if own is not None:  # None: no adapter, or it is just being replaced
        points.setdefault((own.step, own.tokens_seen), own)
    return tuple(points[at] for at in sorted(points)), tuple(damage)


def _ending(folder: Path) -> tuple[Ending | None, tuple[Damage, ...]]:
    """Return a trial's ending, and what is damaged of it.

    An unreadable ending counts as pruned, because the trial's checkpoints are gone.
    """
    try:
        return read_as(folder / ENDING_FILE, _ENDINGS), ()
    except DamagedFile as error:
        reason = f"it isn't known how it ended, as {_unreadable(folder, error)}"
        return Ending(TrialState.PRUNED, reason), (_unreadable(folder, error, "; it counts as pruned"),)


def _row_damage(record: TrialRecord) -> tuple[Damage, ...]:
    """Return what is wrong with a trial's eval_rows.json, which every trial that was evaluated has."""
    cost = "so it's compared with no other trial row by row"
    rows, damage = _rows(record.folder)
    if rows is not None:
        return damage
    if damage:
        return tuple(replace(each, text=f"{each}; {cost}") for each in damage)
    return (Damage(EVAL_ROWS_FILE, f"{EVAL_ROWS_FILE} is gone, {cost}", is_gone=True),) if record.points else ()


def _rows(folder: Path) -> tuple[RowLosses | None, tuple[Damage, ...]]:
    """Return the row losses beside the best adapter's weights, else those in the trial's folder, and any damage."""
    damage = []
    for path in _eval_rows_files(folder):
        try:
            rows = read_as(path, _ROWS)
        except DamagedFile as error:
            damage.append(_unreadable(folder, error))
            continue
        if rows is not None:
            return rows, tuple(damage)
    return None, tuple(damage)


def _eval_rows_files(folder: Path) -> tuple[Path, Path]:
    """Return the file in the adapter's folder, and the one beside that folder.

    The latter is written second, so a crash in between leaves it one evaluation behind. The base model and run folders
    of earlier versions have only that one.
    """
    return in_place(folder / "adapter") / EVAL_ROWS_FILE, folder / EVAL_ROWS_FILE
