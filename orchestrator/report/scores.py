"""The report's section on loss and task score: whether they order trials alike and have the same best trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import scipy

from orchestrator.report.best_score import of_best, show_score
from orchestrator.report.data import ReportData, trial_label
from orchestrator.report.score_agreement import (
    CHANCE,
    FEWEST_TRIALS,
    Contradiction,
    ScoredTrial,
    agreement,
    at_end,
    at_rung,
    contradictions,
    latest,
)
from trials.metrics.paired_tests import ALPHA
from trials.metrics.score_names import NAMES, shown
from trials.metrics.task_scores import Measure

_SHOWN_CONTRADICTIONS = 5


@dataclass(frozen=True)
class ScoreRow:
    """One trial at one stage, as text; places count from 1, and `2=` is a shared one."""

    id: str
    name: str
    loss: str
    loss_place: str
    score: str
    score_place: str
    is_leader: bool


@dataclass(frozen=True)
class Stage:
    """Trials that were scored at one comparison point or at their end, lowest loss first, with sentences on them."""

    title: str
    rows: list[ScoreRow]
    sentences: list[str]
    contradictions: list[str]


@dataclass(frozen=True)
class ScoreSection:
    """Content of the section; `rows` is the number of answered eval rows."""

    measure: str
    rows: int
    sentences: list[str]
    stages: list[Stage]


def score_section(data: ReportData) -> ScoreSection | None:
    """Return the section; None if the recipe asks for no score."""
    asked = data.search.recipe.evaluation.score_rows
    if asked is None:
        return None
    trials = latest(data.trained)
    base = latest([data.base] if data.base else [])
    known = [*trials, *base]
    if not known:
        return ScoreSection("score", asked, ["Nothing was scored so far."], [])
    measure, rows = known[0].scoring.scores.measure, len(known[0].scoring.scores.values)
    sentences = [of_best(data, trials)] if trials else ["No trial was scored so far."]
    sentences += [f"The base model's {NAMES[measure]} is {show_score(base[0])}."] if base else []
    groups = [(f"At {tokens:,} tokens", at_rung(data.trained, tokens)) for tokens in data.rungs]
    groups.append(("At the end of trials that finished or ran out of patience", at_end(data.trained)))
    stages = [_stage(title, group, data) for title, group in groups if group]
    return ScoreSection(NAMES[measure], rows, sentences, stages)


def _stage(title: str, trials: Sequence[ScoredTrial], data: ReportData) -> Stage:
    ordered = sorted(trials, key=lambda trial: (trial.loss, trial.record.id))
    loss_places = _places([trial.loss for trial in ordered])
    score_places = _places([-trial.score for trial in ordered])
    leader = data.leader.id if data.leader else None
    rows = [
        ScoreRow(
            id=trial.record.id,
            name=trial_label(trial.record),
            loss=f"{trial.loss:.4f}",
            loss_place=loss_place,
            score=show_score(trial),
            score_place=score_place,
            is_leader=trial.record.id == leader,
        )
        for trial, loss_place, score_place in zip(ordered, loss_places, score_places, strict=True)
    ]
    pairs, contradicting = _of_pairs(ordered) if len(ordered) > 1 else ("", [])
    return Stage(title, rows, [_of_order(ordered), *([pairs] if pairs else [])], contradicting)


def _places(values: Sequence[float]) -> list[str]:
    places = [int(place) for place in scipy.stats.rankdata(values, method="min")]
    return [f"{place}=" if places.count(place) > 1 else str(place) for place in places]


def _of_order(trials: Sequence[ScoredTrial]) -> str:
    measure = NAMES[trials[0].scoring.scores.measure]
    found = agreement(trials)
    if found is None:
        if len(trials) < FEWEST_TRIALS:
            return f"{len(trials)} trial{'s' * (len(trials) > 1)}: too few for an order."
        return f"All {len(trials)} trials have the same loss or the same {measure}, so there's no order to compare."
    if found.p_value >= ALPHA:
        said = f"whether loss and {measure} order these trials alike cannot be told"
    elif found.tau > 0:
        said = f"loss and {measure} tend to order these trials alike"
    else:
        said = f"loss and {measure} tend to order these trials the opposite way"
    return f"Kendall's τ is {found.tau:+.2f} (p = {found.p_value:.2g}, {found.trials} trials): {said}."


def _of_pairs(trials: Sequence[ScoredTrial]) -> tuple[str, list[str]]:
    """Say for how many pairs the score contradicts the loss, and for which."""
    measure = NAMES[trials[0].scoring.scores.measure]
    found = contradictions(trials)
    if not found.told_apart:
        return "The loss tells no two of them apart.", []
    start = f"The loss tells {found.told_apart} pair{'s' * (found.told_apart > 1)} apart"
    if not found.found:
        return f"{start}, and {measure} clearly contradicts it about none of them.", []
    shown = _without_repeats(found.found)[:_SHOWN_CONTRADICTIONS]
    chance = f"by chance alone it would be about {CHANCE * found.told_apart:.1f}"
    such_as = "" if len(shown) == len(found.found) else ", such as"
    said = f"{start}, and {measure} clearly contradicts it about {len(found.found)} of them ({chance}){such_as}:"
    return said, [_contradiction(pair) for pair in shown]


def _without_repeats(found: Sequence[Contradiction]) -> list[Contradiction]:
    """Return the worst ones, each trial at most once; else all would be about the same two or three trials."""
    seen: set[str] = set()
    kept = []
    for pair in found:
        ids = {pair.lower_loss.record.id, pair.better_score.record.id}
        if not ids & seen:
            kept.append(pair)
            seen |= ids
    return kept


def _contradiction(pair: Contradiction) -> str:
    scores = pair.better_score.scoring.scores
    points = "points of accuracy" if scores.measure is Measure.LABEL else "of ROUGE-L"
    return (
        f"{pair.lower_loss.record.id} has the lower loss, by {pair.loss.difference:.4f} ± "
        f"{pair.loss.standard_error:.4f}, and {pair.better_score.record.id} the better score, by "
        f"{shown(pair.score.difference, scores.measure, unit='')} {points}"
    )
