"""Selection of the best trial, if it is better than the base model. Records in, ranking out; reads row losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trials.errors import NothingToExport
from trials.metrics.paired_tests import is_clear, loss_interval
from trials.metrics.row_losses import LossDifference, RowLosses, compare
from trials.records.adapter_check import why_not_there
from trials.records.trial_dir import EVAL_ROWS_FILE, Origin, TrialRecord

LEAST_GAIN = 1e-3
"""Minimum gain in nats per token. Exports are verified to this tolerance, so a smaller gain couldn't be verified."""


_MOST_NAMED = 5
"""Maximum number of skipped trials named in an error message."""


@dataclass(frozen=True)
class Best:
    """A trial, the base model's record, and the difference of their losses on the same rows."""

    trial: TrialRecord
    base: TrialRecord
    gain: LossDifference
    """Loss of the base minus loss of the trial, nats per token."""

    @property
    def loss(self) -> float:
        """Best eval loss of the trial, nats per token."""
        loss = self.trial.best_eval_loss
        assert loss is not None  # `rank` leaves out trials without evaluations
        return loss


def rank(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trained trials that were evaluated, lowest best_eval_loss first; ties go to the lower id."""
    trained = [r for r in records if r.origin is not Origin.BASE and r.best_eval_loss is not None]
    return sorted(trained, key=lambda record: (record.best_eval_loss, record.id))


def base_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the base model's record; None if it was not evaluated."""
    return next((r for r in records if r.origin is Origin.BASE and r.points), None)


@dataclass(frozen=True)
class Skipped:
    """A trial with a lower loss than those that can be exported, and the reason why it can't be exported."""

    trial: TrialRecord
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the entry for a manifest."""
        return {"trial": self.trial.id, "eval_loss": self.trial.best_eval_loss, "reason": self.reason}


@dataclass(frozen=True)
class Candidates:
    """Trials that clearly beat the base model and whose adapters are on disk, best first; at least one."""

    best: Sequence[Best]
    skipped: Sequence[Skipped]
    """Trials with a lower loss than the best exportable trial."""


def pick_best(records: Sequence[TrialRecord]) -> Best:
    """Return the best trial that may be exported. Raises `NothingToExport` if there is none."""
    return candidates(records).best[0]


def candidates(records: Sequence[TrialRecord]) -> Candidates:
    """Return all trials that may be exported. Raises `NothingToExport` if there is none."""
    base = base_of(records)
    base_rows = base.row_losses() if base else None
    if base is not None and base_rows is None:
        raise NothingToExport(
            f"the base model's {EVAL_ROWS_FILE} is gone or can't be read, so nothing can be shown to beat it. Resume "
            "the search, which evaluates it again."
        )
    if base is None or base_rows is None:
        raise NothingToExport(
            "the base model was not evaluated, so nothing can be shown to beat it. Resume the search."
        )
    found: list[Best] = []
    skipped: list[Skipped] = []
    for trial in rank(records):
        compared = _against(base, base_rows, trial)
        if isinstance(compared, Best):
            found.append(compared)
        elif not found:
            skipped.append(Skipped(trial, compared))
    clear = [best for best in found if is_clear(best.gain) and best.gain.difference > LEAST_GAIN]
    if not clear:
        raise NothingToExport(_why_none(found, skipped, base_rows))
    return Candidates(clear, skipped)


def _against(base: TrialRecord, base_rows: RowLosses, trial: TrialRecord) -> Best | str:
    """Return the comparison of a trial with the base on the same rows, or the reason why it can't be exported."""
    problem = why_not_there(trial.adapter)
    if problem is not None:
        return problem
    rows = trial.row_losses()
    if rows is None:
        return f"its {EVAL_ROWS_FILE} is gone or can't be read, so nothing can be shown of it"
    try:
        return Best(trial, base, compare(rows, base_rows))
    except ValueError as error:
        return f"it can't be compared with the base model: {error}"


def _why_none(found: Sequence[Best], skipped: Sequence[Skipped], base_rows: RowLosses) -> str:
    unusable = "; ".join(f"trial {each.trial.id} is skipped: {each.reason}" for each in skipped[:_MOST_NAMED])
    if not found:
        if unusable:
            return f"no trial can be exported: {unusable}. Restore its files, or resume the search."
        return "no trial was evaluated, so there is no adapter. Give the search more time."
    best = found[0]
    gain = loss_interval(best.gain)
    return (
        f"the best trial, {best.trial.id}, has eval loss {best.loss:.4f} and the base model {base_rows.mean:.4f}: "
        f"better by {gain.value:.4f} (95 % {gain.low:.4f} to {gain.high:.4f}), where an interval above 0 and more than "
        f"{LEAST_GAIN:g} are asked for. "
        "Widen the learning rates, train longer, or give more eval rows." + (f" Also, {unusable}." if unusable else "")
    )


def paired_gain(other: TrialRecord, trial: TrialRecord) -> LossDifference | None:
    """Return the loss of `other` minus the loss of `trial` on the same rows; None if they have no such rows."""
    rows, other_rows = trial.row_losses(), other.row_losses()
    if rows is None or other_rows is None:
        return None
    try:
        return compare(rows, other_rows)
    except ValueError:
        return None
