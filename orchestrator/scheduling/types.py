"""Inputs and answers of `orchestrator.scheduling.freeze_thaw`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BudgetState:
    """Time and slots that are left to a search."""

    seconds_left: float
    """Seconds left for training: until the reserve begins."""
    seconds: float
    """Seconds for training when the search began."""
    slots: int
    """Number of trials that run at the same time."""
    seconds_full: float
    """Seconds of a whole full trial at the measured throughput, evaluations included."""
    evaluation_point: float
    """The fraction of a full trial between two evaluations."""
    seconds_start: float
    """Seconds to start or resume a trial."""
    may_start: bool = True
    """Whether a new configuration may start at all: the user may have limited their number."""


@dataclass(frozen=True)
class ContinueDecision:
    """Decision at an evaluation of a trial: it goes on, or it pauses; with the reason."""

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
    """The free slot stays free, for this reason."""

    reason: str


Next = Resume | StartNew | Idle
