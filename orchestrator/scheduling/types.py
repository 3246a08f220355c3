"""What the scheduler is told and what it answers (orchestrator.scheduling.scheduler)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Where a trial stands."""

    RUNNING = "running"
    PAUSED = "paused"
    OVER = "over"
    """Finished, stopped early, or pruned for good."""
    INFEASIBLE = "infeasible"
    """Diverged, or out of memory."""


@dataclass(frozen=True)
class TrialView:
    """What is known of one trial."""

    trial_id: str
    values: Mapping[str, Any]
    """Hyperparameters that the search varies, as in the recipe's space."""
    points: tuple[tuple[float, float], ...]
    """(fraction of the longest full trial in tokens, best eval loss so far in nats), ascending."""
    end: float
    """The fraction at which it's complete."""
    state: State
    is_start: bool
    """A starting point of the recipe: it has to be complete by the end, whatever its value."""
    noise: float
    """Paired standard error of its loss against the best trial's on the same rows, in nats; 0.0: unknown."""


@dataclass(frozen=True)
class BudgetState:
    """What is left of it."""

    seconds_left: float
    """Of training, until the reserve."""
    seconds: float
    """The same when the search began."""
    slots: int
    """Trials at once."""
    seconds_full: float
    """Of a whole full trial at the present pace, evaluations included."""
    evaluation_point: float
    """The fraction of a full trial between two evaluations."""
    seconds_start: float
    """To start or resume a trial."""
    may_start: bool = True
    """Whether a new configuration may start at all: the user may have limited their number."""


@dataclass(frozen=True)
class ContinueDecision:
    """What becomes of a trial at an evaluation: it goes on or pauses; and why."""

    goes_on: bool
    reason: str


@dataclass(frozen=True)
class Resume:
    """A paused trial takes the free slot."""

    trial_id: str


@dataclass(frozen=True)
class StartNew:
    """A new configuration takes the free slot."""


@dataclass(frozen=True)
class Idle:
    """The slot stays free: why."""

    reason: str


Next = Resume | StartNew | Idle
