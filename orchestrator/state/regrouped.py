"""That a search went over from a trial on each GPU to all GPUs for one trial, as search.json keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Consolidation:
    """Since when several processes train each trial together, which one did before."""

    ranks: int
    speedup: float
    """How many times as fast a trial is expected to be, before it's measured."""
    finalist: str
    """The trial for whose sake."""
    reason: str
    at: str
    """ISO 8601, UTC."""
