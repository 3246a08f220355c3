"""Asynchronous successive halving, stopping variant (Li et al., arXiv 1810.05934), counted in tokens.

Pure rules: losses at rungs in, verdict out. The rungs are rebuilt from the records on disk after a restart, so a
crash forgets nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trials.records import EvalPoint, TrialRecord


@dataclass(frozen=True)
class RungVerdict:
    """What became of a trial at a rung: its place (1 is best) among the trials that got there, itself included."""

    tokens: int
    loss: float
    place: int
    trials: int
    passes: bool

    def __str__(self) -> str:
        passed = "passes" if self.passes else "doesn't pass"
        return f"{passed} the rung at {self.tokens:,} tokens with {self.loss:.4f}, place {self.place} of {self.trials}"


def rung_tokens(full_tokens: int, reduction_factor: int, rungs: int) -> list[int]:
    """Tokens seen at each rung, ascending: full / eta^rungs ... full / eta."""
    return [max(1, round(full_tokens / reduction_factor**k)) for k in range(rungs, 0, -1)]


def loss_at(points: Sequence[EvalPoint], tokens: int) -> float | None:
    """The best loss at the first evaluation that has seen so many tokens; None if the trial didn't get there."""
    return next((point.best_eval_loss for point in points if point.tokens_seen >= tokens), None)


def rungs_from_records(records: Iterable[TrialRecord], rungs: Sequence[int]) -> dict[int, dict[str, float]]:
    """For each rung the loss of every trial that got there, by trial id."""
    found: dict[int, dict[str, float]] = {tokens: {} for tokens in rungs}
    for record in records:
        for tokens in rungs:
            loss = loss_at(record.points, tokens)
            if loss is not None:
                found[tokens][record.id] = loss
    return found


def judge(losses: Mapping[str, float], trial_id: str, tokens: int, reduction_factor: int) -> RungVerdict:
    """Passes if the trial is among the best 1/eta of those that reached the rung so far; the best one always does."""
    loss = losses[trial_id]
    place = 1 + sum(other < loss for name, other in losses.items() if name != trial_id)
    passes = place <= max(1, len(losses) // reduction_factor)
    return RungVerdict(tokens, loss, place, len(losses), passes)
