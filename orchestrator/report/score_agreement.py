"""Agreement of eval loss, by which a search decides, and task score on the order of trials. Pure: reads no disk.

Trials are compared at a comparison point, where they have seen the same number of tokens, or at their end. Loss and
score are always those of the same weights; a trial's best loss may be of another evaluation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import scipy

from trials.metrics.paired_tests import LabelComparison, ScoreComparison, compare_scores, is_clear
from trials.metrics.row_losses import LossDifference, compare
from trials.metrics.task_scores import RowScores
from trials.records.score_log import ScoreRecord
from trials.records.trial_dir import EndingKind, TrialRecord

FEWEST_TRIALS = 3
"""Two trials are too few: one is ahead by each measure, which is no order yet."""
CHANCE = 0.025
"""Probability that a score calls a given one of two equal models clearly better: one side of 5 %."""


@dataclass(frozen=True)
class ScoredTrial:
    """A trial at one of its scored evaluations."""

    record: TrialRecord
    scoring: ScoreRecord

    @property
    def loss(self) -> float:
        """Eval loss at that evaluation, nats per token."""
        return self.scoring.losses.mean

    @property
    def score(self) -> float:
        """Mean score of the answered rows."""
        return self.scoring.scores.mean


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b between the order by loss and the order by score: 1 is the same order, -1 the reverse."""

    trials: int
    tau: float
    p_value: float


@dataclass(frozen=True)
class Contradiction:
    """Two trials, of which one has a clearly lower loss and the other a clearly better score."""

    lower_loss: ScoredTrial
    better_score: ScoredTrial
    loss: LossDifference
    score: LabelComparison | ScoreComparison
    """Score of `better_score` minus score of `lower_loss`."""


@dataclass(frozen=True)
class Contradictions:
    """Number of pairs that the loss tells apart, and those that the score orders the other way, worst first."""

    told_apart: int
    found: tuple[Contradiction, ...]


def at_rung(records: Sequence[TrialRecord], tokens: int) -> list[ScoredTrial]:
    """Return the trials that were scored when they reached `tokens`, a comparison point."""
    found = []
    for record in records:
        reached = next((point.step for point in record.points if point.tokens_seen >= tokens), None)
        found += [ScoredTrial(record, scoring) for scoring in record.scorings if scoring.step == reached]
    return found


def at_end(records: Sequence[TrialRecord]) -> list[ScoredTrial]:
    """Return the trials that were scored at their end, at full length or stopped early."""
    ended = [r for r in records if r.ending and r.ending.kind in {EndingKind.FINISHED, EndingKind.EARLY_STOPPED}]
    return [trial for trial in latest(ended) if trial.scoring.step == trial.record.points[-1].step]


def latest(records: Sequence[TrialRecord]) -> list[ScoredTrial]:
    """Return every trial that was scored, at its last scored evaluation."""
    scorings = [(record, record.scorings) for record in records]
    return [ScoredTrial(record, found[-1]) for record, found in scorings if found]


def agreement(trials: Sequence[ScoredTrial]) -> Agreement | None:
    """Return the rank correlation; None for fewer than three trials, or if all have the same loss or the same score."""
    if len(trials) < FEWEST_TRIALS:
        return None
    found = scipy.stats.kendalltau([trial.loss for trial in trials], [-trial.score for trial in trials])
    return None if math.isnan(found.statistic) else Agreement(len(trials), float(found.statistic), float(found.pvalue))


def contradictions(trials: Sequence[ScoredTrial]) -> Contradictions:
    """Compare all pairs of trials; pairs that were evaluated on different rows are left out."""
    told_apart, found = 0, []
    for pair in combinations(trials, 2):
        ahead, behind = sorted(pair, key=lambda trial: trial.loss)
        try:
            gain = compare(ahead.scoring.losses, behind.scoring.losses)
        except ValueError:
            continue
        if not is_clear(gain):
            continue
        told_apart += 1
        score = _clearly_better(behind.scoring.scores, ahead.scoring.scores)
        if score is not None:
            found.append(Contradiction(ahead, behind, gain, score))
    found.sort(key=lambda contradiction: -contradiction.score.difference.value)
    return Contradictions(told_apart, tuple(found))


def _clearly_better(scores: RowScores, others: RowScores) -> LabelComparison | ScoreComparison | None:
    """Return how much better `scores` are than `others`; None if they aren't, or if that can't be told."""
    if scores.mean <= others.mean:
        return None
    try:
        if not _could_be_clear(scores, others):
            return None
        found = compare_scores(others, scores)
    except ValueError:
        return None
    return found if found.better == "b" else None


def _could_be_clear(scores: RowScores, others: RowScores) -> bool:
    """Return whether a test may find a difference: below 1.5 paired standard errors none at 5 % does.

    This bound is quick. A bootstrap takes 10 ms, and a search of 50 trials has over a thousand pairs.
    """
    differences = [a - b for a, b in zip(scores.values, others.values, strict=True)]
    return statistics.fmean(differences) > 1.5 * statistics.stdev(differences) / math.sqrt(len(differences))
