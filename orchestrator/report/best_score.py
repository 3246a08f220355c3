"""The report's text on the best score: whether the exported trial has it, and whether the difference is clear."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.data import ReportData
from orchestrator.report.score_agreement import ScoredTrial
from trials.metrics.paired_tests import CANNOT_TELL, compare_scores
from trials.metrics.score_names import NAMES, shown
from trials.records.score_log import estimate


def of_best(data: ReportData, trials: Sequence[ScoredTrial]) -> str:
    """Compare the exported trial with the one of best score, in words; `trials` are all that have a score."""
    measure = NAMES[trials[0].scoring.scores.measure]
    best = max(trials, key=lambda trial: trial.score)
    who, chosen_id = _chosen(data)
    chosen = next((trial for trial in trials if trial.record.id == chosen_id), None)
    if chosen is None:
        return f"Trial {best.record.id} has the best {measure}, {show_score(best)}. The {who} was not scored."
    if chosen.score == best.score:
        shared = sum(trial.score == best.score for trial in trials) - 1
        beside = f", as {'has' if shared == 1 else 'have'} {shared} other{'s' * (shared > 1)}" if shared else ""
        return f"The {who} also has the best {measure}{beside}: {show_score(chosen)}.{_of_its_weights(chosen)}"
    scores = f"Trial {best.record.id} has the best {measure}, {show_score(best)}; the {who} has {show_score(chosen)}."
    return f"{scores} {_of_two(chosen, best)}{_of_its_weights(chosen)}"


def _of_two(chosen: ScoredTrial, best: ScoredTrial) -> str:
    try:
        found = compare_scores(chosen.scoring.scores, best.scoring.scores)
    except ValueError:
        return "They were not scored on the same rows."
    if found.better is None:
        return f"On these rows the two {CANNOT_TELL}."
    kept = f"; its adapter is {best.record.adapter}" if best.record.has_adapter else ", but its adapter wasn't kept"
    margin = shown(found.difference, best.scoring.scores.measure, unit=" points")
    return f"That's a clear difference, {margin}: if it is what counts, look at trial {best.record.id}{kept}."


def _chosen(data: ReportData) -> tuple[str, str | None]:
    """Return the report's name for the trial that was chosen by loss, and its id; id None: no trial has a loss."""
    exported = (data.manifest or {}).get("trial")
    if exported is not None:
        return f"exported trial {exported}", str(exported)
    leader = data.leader.id if data.leader else None
    return f"trial with the lowest loss, {leader},", leader


def _of_its_weights(chosen: ScoredTrial) -> str:
    """Return a sentence if the trial's last score is not of the exported weights; empty text if it is.

    The exported adapter is the trial's best by loss, which may be older than its last score.
    """
    best = chosen.record.best_point
    if best is None or best.step == chosen.scoring.step:
        return ""
    return (
        f" It was scored at {chosen.scoring.tokens_seen:,} tokens, and its adapter with the lowest loss is of "
        f"{best.tokens_seen:,}."
    )


def show_score(trial: ScoredTrial) -> str:
    """Return a score with its 95 % interval, as text."""
    return shown(estimate(trial.scoring.scores), trial.scoring.scores.measure)
