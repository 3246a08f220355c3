"""Trials as samplers and schedulers see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trials.state import TrialState


@dataclass(frozen=True)
class TrialView:
    """One trial as samplers and schedulers see it."""

    trial_id: str
    values: Mapping[str, Any]
    """Hyperparameters that the search varies, as in the study's distributions."""
    points: tuple[tuple[float, float], ...]
    """(fraction of the longest full trial in tokens, best eval loss so far in nats), ascending."""
    end: float
    """Fraction of the longest full trial at which this trial is complete."""
    state: TrialState
    is_start: bool
    """Whether it is a starting point of the recipe, which must be complete by the end whatever its value."""
    noise: float
    """Paired standard error of its loss against the best trial's on the same rows, in nats; 0.0: unknown."""
    pace: float = 1.0
    """Seconds that it takes for the same tokens, relative to the mean trial's."""

    @property
    def fraction(self) -> float:
        """Fraction of the longest full trial that it has been trained; 0.0 before its first evaluation."""
        return self.points[-1][0] if self.points else 0.0

    @property
    def to_do(self) -> float:
        """Fraction of the longest full trial that it still has to be trained."""
        return self.end - self.fraction
