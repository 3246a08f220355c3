"""The report's tables: rows of text, ready to be shown, and trials.csv."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.data import ReportData, ending_label, hyperparameter, trial_label
from orchestrator.state.selection import paired_gain
from search_spaces.durations import format_duration
from search_spaces.layers import flatten
from trials.config import Hyperparameters
from trials.records.trial_dir import Origin, TrialRecord
from trials.state import TrialState

NOTHING = "\u2013"
_CSV_HEAD = ("id", "origin", "name", "ending", "reason", "best_eval_loss", "tokens_seen", "seconds", "steps", "score")
# Endings that need attention come first; pruning is the normal course of a search.
_STOPPED_ORDER = (
    TrialState.FAILED,
    TrialState.OUT_OF_MEMORY,
    TrialState.DIVERGED,
    TrialState.PAUSED,
    TrialState.OUT_OF_TIME,
    TrialState.EARLY_STOPPED,
    TrialState.PRUNED,
)


@dataclass(frozen=True)
class RankingRow:
    """One trial in the ranking, as text; `values` in the order of `ReportData.varied`."""

    id: str
    name: str
    ending: str
    loss: str
    behind: str
    tokens: str
    tokens_per_second: str
    time: str
    values: tuple[str, ...]
    is_leader: bool
    is_base: bool


@dataclass(frozen=True)
class StoppedRow:
    """One trial that didn't run its full length, and why."""

    id: str
    name: str
    ending: str
    reason: str
    tokens: str


@dataclass(frozen=True)
class Setting:
    """One value of the resolved recipe and its source."""

    key: str
    value: str
    source: str


def show(value: Any) -> str:
    """Return a hyperparameter or setting as short text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "+".join(show(part) for part in value)
    return str(value)


def ranking_rows(data: ReportData) -> list[RankingRow]:
    """Return all trials and the base, lowest loss first, those without a loss last; ties in order of id."""
    leader = data.leader
    return [_ranking_row(record, leader, data.varied) for record in sorted(data.records, key=_by_loss)]


def stopped_rows(data: ReportData) -> list[StoppedRow]:
    """Return every trial that didn't finish, failures first."""
    stopped = [record for record in data.trained if record.state in _STOPPED_ORDER]
    stopped.sort(key=lambda record: (_STOPPED_ORDER.index(record.state), record.id))
    return [
        StoppedRow(
            record.id,
            trial_label(record),
            ending_label(record),
            record.ending.reason if record.ending else "no ending on disk",
            f"{record.tokens_seen:,}",
        )
        for record in stopped
    ]


def counts_line(data: ReportData) -> str:
    """Return one sentence that counts trials by how they ended."""
    if not data.trained:
        return "No trial was started yet."
    counts = Counter(ending_label(record) for record in data.trained)
    total = len(data.trained)
    return f"{total} trial{'s' if total != 1 else ''}: {', '.join(f'{n} {k}' for k, n in counts.most_common())}."


def settings(data: ReportData) -> tuple[list[Setting], list[Setting]]:
    """Return the settings that a source has set, and all others, which are built-in defaults."""
    sources = data.search.sources
    leaves = _leaves(data.search.recipe.model_dump(mode="json"))
    found = [Setting(key, _show_setting(value), sources.get(key, "default")) for key, value in leaves]
    return [s for s in found if s.key in sources], [s for s in found if s.key not in sources]


def surroundings(data: ReportData) -> list[tuple[str, str]]:
    """Return versions and hardware, as search.json has them, as pairs of name and value."""
    pairs: list[tuple[str, str]] = []
    for part in ("versions", "hardware"):
        content = data.search_json.get(part)
        if isinstance(content, dict):
            pairs += [(key.replace("_", " "), show(value)) for key, value in _leaves(content)]
    return pairs


def is_csv_text(text: str) -> bool:
    """Return whether a file's text is a trials.csv, of this version or another."""
    return text.startswith(",".join(_CSV_HEAD[:3]) + ",")


def csv_text(records: Sequence[TrialRecord]) -> str:
    """Return trials.csv: one row a trial, by id; numbers in full precision, absent values empty."""
    names = list(Hyperparameters.model_fields)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_CSV_HEAD, *names])
    for record in records:
        last = record.points[-1] if record.points else None
        writer.writerow(
            [
                record.id,
                record.origin.value,
                record.name,
                record.ending.kind.value if record.ending else "",
                record.ending.reason if record.ending else "",
                record.best_eval_loss,
                record.tokens_seen,
                last.seconds if last else None,
                last.step if last else None,
                record.score,
                *(_csv_value(hyperparameter(record, name)) for name in names),
            ]
        )
    return text.getvalue()


def _ranking_row(record: TrialRecord, leader: TrialRecord | None, varied: Sequence[str]) -> RankingRow:
    last = record.points[-1] if record.points else None
    speed = last.tokens_per_second if last else None
    is_base = record.origin is Origin.BASE
    return RankingRow(
        id=record.id,
        name="base model" if is_base else trial_label(record),
        ending="" if is_base else ending_label(record),
        loss=NOTHING if record.best_eval_loss is None else f"{record.best_eval_loss:.4f}",
        behind=NOTHING if leader is None or record.id == leader.id else _behind(record, leader),
        tokens=NOTHING if is_base else f"{record.tokens_seen:,}",
        tokens_per_second=NOTHING if speed is None else f"{speed:,.0f}",
        time=NOTHING if last is None else format_duration(last.seconds),
        values=tuple(NOTHING if is_base else show(hyperparameter(record, name)) for name in varied),
        is_leader=leader is not None and record.id == leader.id,
        is_base=is_base,
    )


def _behind(record: TrialRecord, leader: TrialRecord) -> str:
    difference = paired_gain(record, leader)
    if difference is None:
        return NOTHING
    return f"{difference.difference:+.4f} ± {difference.standard_error:.4f}"


def _by_loss(record: TrialRecord) -> tuple[bool, float, str]:
    loss = record.best_eval_loss
    return loss is None, 0.0 if loss is None else loss, record.id


def _leaves(mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in flatten(mapping).items() if value != {}]


def _show_setting(value: Any) -> str:
    """Return a setting as text; a list has commas, so that a choice which is itself a list can be told from it."""
    return ", ".join(show(part) for part in value) if isinstance(value, list) else show(value)


def _csv_value(value: Any) -> Any:
    return "+".join(value) if isinstance(value, tuple) else value
