"""Record in search.json of a consolidation: from one trial on each GPU to all GPUs for one trial."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Consolidation:
    """Change after which several processes train each trial together; one process did before."""

    ranks: int
    speedup: float
    """Expected speedup of a trial, before it is measured."""
    finalist: str
    """Id of the trial that is to be completed by the change."""
    reason: str
    at: str
    """Time of the decision, ISO 8601, UTC."""
