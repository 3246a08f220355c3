"""Task scores in an export's manifest: base, starting points and winner, each with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.state.selection import Best
from trials.metrics.paired_tests import compare_scores
from trials.records.score_log import ScoreRecord, estimate
from trials.records.trial_dir import Origin, TrialRecord


def manifest_scores(records: Sequence[TrialRecord], best: Best) -> dict[str, Any] | None:
    """Return scores of the winner, the base and the starting points; None if the winner has none.

    The winner's score is that of the exported weights, if those were scored. Else it is the trial's last score.
    `of_exported_weights` says which one it is.
    """
    scorings = best.trial.scorings
    if not scorings:
        return None
    exported = best.trial.best_point
    assert exported is not None  # a trial without evaluations is no best one
    own = next((scoring for scoring in scorings if scoring.step == exported.step), scorings[-1])
    others = [record for record in (best.base, *_starts(records)) if record.id != best.trial.id]
    return {
        "measure": own.scores.measure.value,
        "rows": len(own.scores.values),
        "winner": {**_described(own), "of_exported_weights": own.step == exported.step},
        "others": [_against(record, own) for record in others if record.scorings],
    }


def _starts(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.origin is Origin.START]


def _described(scoring: ScoreRecord) -> dict[str, Any]:
    return {**asdict(estimate(scoring.scores)), "tokens_seen": scoring.tokens_seen}


def _against(record: TrialRecord, winner: ScoreRecord) -> dict[str, Any]:
    """Return another trial's last score, and how much better the winner's is on the same rows.

    The comparison is left out if the two were not scored on the same rows.
    """
    scoring = record.scorings[-1]
    described = {"trial": record.id, "origin": record.origin.value, "name": record.name, **_described(scoring)}
    try:
        found = compare_scores(scoring.scores, winner.scores)
    except ValueError:
        return described
    return {**described, "winner_is_better_by": asdict(found.difference), "is_clear": found.better is not None}
