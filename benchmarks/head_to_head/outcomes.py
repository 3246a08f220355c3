"""What a rival has left: its adapter and when that was there, its trials, and how long the winner was trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.head_to_head.curves import Evaluation
from benchmarks.head_to_head.rivals import Rival
from benchmarks.head_to_head.stock.trial import POINT_FILE
from orchestrator.state.run_dir import RunDir
from trials.errors import DataError
from trials.records.trial_dir import Origin, TrialRecord, read_trial
from trials.system.damage import DamagedFile, read_value
from trials.system.files import read_json_lines, write_json

_TRAINED = (Origin.START, Origin.PROPOSED, Origin.FINAL)
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Left:
    """What a rival's command has left. `adapter` is None if there is none, and then `ready` and `winner_tokens` are."""

    adapter: Path | None
    ready: float | None
    """Time at which the adapter was complete, in seconds since the epoch."""
    winner_tokens: int | None
    """Training tokens that the adapter has seen."""
    trials: int
    """Trials that were evaluated."""
    tokens: int
    """Training tokens of all trials, up to each one's last evaluation."""


@dataclass(frozen=True)
class Outcome:
    """Result of one rival with one budget and one seed; paths are relative to the folder of its result.json."""

    rival: Rival
    budget_seconds: float
    seed: int
    command: tuple[str, ...]
    seconds: float
    """Wall clock from the start of the command to its end."""
    ready_seconds: float | None
    """Wall clock from the start of the command to the adapter on disk; None: no adapter."""
    exit_code: int
    was_cut_off: bool
    adapter: str | None
    trials: int
    tokens: int
    winner_share: float | None
    """Training tokens of the adapter over those of the recipe as written; None: no adapter."""
    evaluations: tuple[Evaluation, ...]

    @property
    def tokens_per_second(self) -> float:
        """Training tokens of all trials over the time used, in tokens per second."""
        return self.tokens / self.seconds

    @property
    def is_late(self) -> bool:
        """Whether the adapter was on disk only after the time was over."""
        return self.ready_seconds is not None and self.ready_seconds > self.budget_seconds

    def write(self, path: Path) -> None:
        """Write result.json."""
        write_json(path, asdict(self))


def read_outcome(path: Path) -> Outcome | None:
    """Read a result.json; None if there is none. Raises `DataError` if it can't be read."""
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        evaluations = tuple(Evaluation(**each) for each in content.pop("evaluations"))
        rival, command = Rival(content.pop("rival")), tuple(content.pop("command"))
        return Outcome(rival=rival, command=command, evaluations=evaluations, **content)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} can't be read: {error}. Remove its folder, and that rival is run again.") from error


def left_by(rival: Rival, folder: Path) -> Left:
    """Return what a rival has left in the folder that its command was given."""
    readers: Mapping[Rival, Callable[[Path], Left]] = {
        Rival.RECIPE: _left_by_trial,
        Rival.REPEATED: _left_by_trial,
        Rival.STOCK: _left_by_stock,
    }
    return readers.get(rival, _left_by_search)(folder)


def _left_by_trial(folder: Path) -> Left:
    if not (folder / "config.json").is_file():
        return Left(None, None, None, 0, 0)
    record = read_trial(folder)
    seen, best = record.tokens_seen, record.best_point
    if best is None or not record.has_adapter:
        return Left(None, None, None, int(bool(record.points)), seen)
    return Left(record.adapter, _time_of(record.adapter / _WEIGHTS), best.tokens_seen, 1, seen)


def _left_by_search(folder: Path) -> Left:
    run = RunDir(folder)
    trained = [record for record in _records(run) if record.origin in _TRAINED and record.points]
    tokens = sum(record.tokens_seen for record in trained)
    manifest = run.export / "manifest.json"
    try:
        winner = (read_value(manifest) or {}).get("trial")
    except DamagedFile:
        winner = None
    best = next((record.best_point for record in trained if record.id == winner), None)
    if best is None:
        return Left(None, None, None, len(trained), tokens)
    return Left(run.export, _time_of(run.export / _WEIGHTS), best.tokens_seen, len(trained), tokens)


def _records(run: RunDir) -> list[TrialRecord]:
    return run.records() if (run.path / "trials").is_dir() else []


def _left_by_stock(folder: Path) -> Left:
    points = [read_json_lines(file) for file in sorted((folder / "trials").glob("*/metrics.jsonl"))]
    seen = [max((point["tokens_seen"] for point in each), default=0) for each in points]
    best = folder / "best"
    if not (best / POINT_FILE).is_file():
        return Left(None, None, None, len(points), sum(seen))
    winner = json.loads((best / POINT_FILE).read_text(encoding="utf-8"))["tokens_seen"]
    return Left(best, _time_of(best / _WEIGHTS), winner, len(points), sum(seen))


def _time_of(file: Path) -> float:
    return file.stat().st_mtime
