"""Which trial is best, and whether it's better than the base. Pure: records in, ranking out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trials.errors import NothingToExport
from trials.losses import LossDifference, compare
from trials.records import EVAL_ROWS_FILE, Origin, TrialRecord

LEAST_GAIN = 1e-3
"""Nats per token. An export is verified to within this, so a smaller gain couldn't be shown to be in it."""


@dataclass(frozen=True)
class Best:
    """The winner, the base that it beats, and by how much on the same rows."""

    trial: TrialRecord
    base: TrialRecord
    gain: LossDifference
    """Loss of the base minus loss of the winner, nats per token."""

    @property
    def loss(self) -> float:
        """The winner's best eval loss, nats per token."""
        loss = self.trial.best_eval_loss
        assert loss is not None  # a trial without evaluations is no best one
        return loss


def rank(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trained trials that were evaluated, lowest best_eval_loss first; ties go to the earlier trial."""
    trained = [r for r in records if r.origin is not Origin.BASE and r.best_eval_loss is not None]
    return sorted(trained, key=lambda record: (record.best_eval_loss, record.id))


def base_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The base model's record, if it has been evaluated."""
    return next((r for r in records if r.origin is Origin.BASE and r.points), None)


def pick_best(records: Sequence[TrialRecord]) -> Best:
    """The best trial whose adapter is on disk. Raises `NothingToExport` if none clearly beats the base model."""
    base = base_of(records)
    ranked = [record for record in rank(records) if record.has_adapter]
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
    if not ranked:
        raise NothingToExport("no trial was evaluated, so there is no adapter. Give the search more time.")
    # One whose file was damaged is passed over: the next one can be shown to be better than the base.
    winner, rows = next(((r, rows) for r in ranked if (rows := r.row_losses()) is not None), (ranked[0], None))
    if rows is None:
        raise NothingToExport(f"trial {winner.id} has no eval_rows.json, so nothing can be shown of it. Restore it.")
    try:
        best = Best(winner, base, compare(rows, base_rows))
    except ValueError as error:
        raise NothingToExport(f"trial {winner.id} can't be compared with the base model: {error}.") from error
    if not (best.gain.is_clear and best.gain.difference > LEAST_GAIN):
        gain = f"{best.gain.difference:.4f} ± {best.gain.standard_error:.4f}"
        raise NothingToExport(
            f"the best trial, {winner.id}, has eval loss {best.loss:.4f} and the base model {base_rows.mean:.4f}: "
            f"better by {gain}, where more than twice that error and more than {LEAST_GAIN:g} are asked for. "
            "Widen the learning rates, train longer, or give more eval rows."
        )
    return best


def gain_over(other: TrialRecord, trial: TrialRecord) -> LossDifference | None:
    """Loss of `other` minus loss of `trial` on the same rows; None where they have no such rows."""
    rows, other_rows = trial.row_losses(), other.row_losses()
    if rows is None or other_rows is None:
        return None
    try:
        return compare(rows, other_rows)
    except ValueError:
        return None
