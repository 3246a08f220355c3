"""What a run folder says, gathered once for the report. Needs neither torch nor Ray, and no search that's over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.state.export_files import read_description, read_samples
from orchestrator.state.run_dir import RunDir, Search
from orchestrator.state.selection import Best, base_of, pick_best, rank
from orchestrator.state.timing import read_timing
from trials.errors import NothingToExport
from trials.records.trial_dir import Origin, TrialRecord

UNENDED = "running or paused"
_WRITTEN_BY_TRIALS = ("config.json", "metrics.jsonl", "eval_rows.json", "ending.json")


@dataclass(frozen=True)
class ReportData:
    """One moment of a run folder. Losses in nats per completion token."""

    path: Path
    search: Search
    records: tuple[TrialRecord, ...]
    best: Best | None
    """The winner; None as long as no trial is worth exporting."""
    why_nothing: str | None
    """Why there's no winner; None if there is one."""
    rungs: tuple[int, ...]
    """Tokens seen at each comparison point, where trials are compared, ascending."""
    last_written: datetime
    """When a trial or the export last wrote a file (UTC)."""
    search_json: Mapping[str, Any]
    manifest: Mapping[str, Any] | None
    """What export/manifest.json says; None without an export."""
    samples: tuple[Mapping[str, Any], ...]
    timing: Mapping[str, Any]
    """What the end of the search took (orchestrator.state.timing); empty before."""
    damage: tuple[str, ...] = ()
    """Sentences about what of the run folder can't be used: trials that are left out, and files."""

    @property
    def base(self) -> TrialRecord | None:
        """The base model's record, if it was evaluated."""
        return base_of(self.records)

    @property
    def trained(self) -> list[TrialRecord]:
        """All trials except the base model, by id."""
        return [record for record in self.records if record.origin is not Origin.BASE]

    @property
    def leader(self) -> TrialRecord | None:
        """The winner; without one the trial with the lowest loss so far."""
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
    """Reads a run folder at any moment of its life. Raises `RunFolderError` if it holds no readable search."""
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
    """How a trial ended, in words."""
    return record.ending.kind.value.replace("_", " ") if record.ending else UNENDED


def trial_label(record: TrialRecord) -> str:
    """Where a trial's configuration came from, in words."""
    return f"starting point {record.name}" if record.origin is Origin.START else record.name


def hyperparameter(record: TrialRecord, name: str) -> Any:
    """A trial's value of a hyperparameter."""
    return getattr(record.config.hyperparameters, name)


def _pick(records: tuple[TrialRecord, ...]) -> tuple[Best | None, str | None]:
    try:
        return pick_best(records), None
    except NothingToExport as error:
        return None, str(error)


def _last_written(run: RunDir, search: Search, records: Iterable[TrialRecord]) -> datetime:
    """By the files' dates: nothing in the folder says when a search ended."""
    files = [record.folder / name for record in records for name in _WRITTEN_BY_TRIALS]
    times = [time for file in (*files, run.export / "manifest.json") if (time := _written(file)) is not None]
    return max(times, default=search.deadline.started)


def _written(file: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, UTC)
    except (OSError, ValueError, OverflowError):
        return None
