"""Content of a run folder, read once for the report, also while the search runs. Needs neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.state.export_files import read_description, read_samples
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.state.selection import Best, base_of, pick_best, rank
from orchestrator.state.timing import read_timing
from trials.errors import NothingToExport
from trials.records.trial_dir import Origin, TrialRecord

UNENDED = "running or paused"
_WRITTEN_BY_TRIALS = ("config.json", "metrics.jsonl", "eval_rows.json", "ending.json")


@dataclass(frozen=True)
class ReportData:
    """State of a run folder at one moment. Losses are in nats per completion token."""

    path: Path
    search: Search
    records: tuple[TrialRecord, ...]
    best: Best | None
    """The winner; None as long as no trial is worth exporting."""
    why_nothing: str | None
    """Reason why there is no winner; None if there is one."""
    rungs: tuple[int, ...]
    """Tokens seen at each comparison point, ascending."""
    last_written: datetime
    """Time at which a trial or the export last wrote a file (UTC); the start of the search if none has."""
    search_json: Mapping[str, Any]
    manifest: Mapping[str, Any] | None
    """Content of export/manifest.json; None without an export."""
    samples: tuple[Mapping[str, Any], ...]
    timing: Mapping[str, Any]
    """Times and durations of the end of the search (see `orchestrator.state.timing`); empty before it."""
    damage: tuple[str, ...] = ()
    """Sentences on trials that are left out and files that can't be used, because they are damaged."""

    @property
    def base(self) -> TrialRecord | None:
        """The base model's record; None if it was not evaluated."""
        return base_of(self.records)

    @property
    def trained(self) -> list[TrialRecord]:
        """All trials except the base model, by id."""
        return [record for record in self.records if record.origin is not Origin.BASE]

    @property
    def compared(self) -> list[TrialRecord]:
        """All trials that have the search's length of a full trial, by id; final ones are longer."""
        return [record for record in self.trained if record.origin is not Origin.FINAL]

    @property
    def leader(self) -> TrialRecord | None:
        """The winner; without one, the trial with the lowest loss so far; None if no trial has a loss."""
        if self.best is not None:
            return self.best.trial
        return next(iter(rank(self.records)), None)

    @property
    def varied(self) -> list[str]:
        """Names of the hyperparameters in which trials of this search can differ."""
        recipe = self.search.recipe
        names = [*recipe.space, *(name for values in recipe.start.values() for name in values)]
        return list(dict.fromkeys(names))


def read_report_data(run: RunDir) -> ReportData:
    """Read a run folder, while its search runs or later. Raises `RunFolderError` if it holds no readable search."""
    search = run.read_search()
    trials = run.read_trials()
    records = trials.records
    best, why_nothing = _pick(records)
    manifest, manifest_damage = read_description(run)
    samples, samples_damage = read_samples(run)
    return ReportData(
        path=run.path.absolute(),
        search=search,
        records=records,
        best=best,
        why_nothing=why_nothing,
        rungs=tuple(search.rungs),
        last_written=_last_written(run, search, records),
        search_json=run.read_json("search.json") or {},
        manifest=manifest,
        samples=samples,
        timing=read_timing(run),
        damage=(*trials.lines(), *manifest_damage, *samples_damage),
    )


def ending_label(record: TrialRecord) -> str:
    """Return in words how a trial ended."""
    return record.ending.kind.value.replace("_", " ") if record.ending else UNENDED


def trial_label(record: TrialRecord) -> str:
    """Return in words where a trial's configuration came from."""
    return f"starting point {record.name}" if record.origin is Origin.START else record.name


def hyperparameter(record: TrialRecord, name: str) -> Any:
    """Return a trial's value of a hyperparameter."""
    return getattr(record.config.hyperparameters, name)


def _pick(records: tuple[TrialRecord, ...]) -> tuple[Best | None, str | None]:
    try:
        return pick_best(records), None
    except NothingToExport as error:
        return None, str(error)


def _last_written(run: RunDir, search: Search, records: Iterable[TrialRecord]) -> datetime:
    """Return the newest date of trials' and export's files, as nothing in the folder says when a search ended."""
    files = [record.folder / name for record in records for name in _WRITTEN_BY_TRIALS]
    times = [time for file in (*files, run.export / "manifest.json") if (time := _written(file)) is not None]
    return max(times, default=search.deadline.started)


def _written(file: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, UTC)
    except (OSError, ValueError, OverflowError):
        return None
