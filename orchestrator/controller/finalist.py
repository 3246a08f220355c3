"""When all GPUs of a machine train one trial together near the end: pure rules, with no Ray, disk or clock.

Side by side, two GPUs get through more than together: no gradient has to travel, and small steps stay efficient. So
trials run apart for as long as that finishes what looks most promising. Near the end it may not: a trial that is too
slow for the time that is left on one GPU can be complete in time on two. Then, and only then, it's worth the change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_SPARE = 0.1
"""Of the time that is left: what it takes is known about so well."""


@dataclass(frozen=True)
class FinalistCandidate:
    """A trial that could go on, running or paused."""

    trial_id: str
    loss: float
    """Expected at its end, in nats."""
    seconds: float
    """To its end on one GPU that it has for itself."""


@dataclass(frozen=True)
class OnAllGpus:
    """What training it on all GPUs would come to."""

    ranks: int
    scaling: float
    """How many times as fast as on one GPU."""
    change_seconds: float
    """Until it trains there."""


def finalist(
    unfinished: Iterable[FinalistCandidate], best_complete: float | None, seconds_left: float, together: OnAllGpus
) -> FinalistCandidate | None:
    """The trial for whose sake all GPUs should work together from now on; None: trials go on side by side.

    It's the most promising one, if it's expected to beat all that are complete (`best_complete`, in nats), can't be
    complete in time on one GPU, and can on all of them.
    """
    best = min(unfinished, key=lambda each: each.loss, default=None)
    if best is None or (best_complete is not None and best.loss >= best_complete):
        return None
    if best.seconds <= seconds_left:
        return None
    needed = together.change_seconds + best.seconds / together.scaling
    return best if needed <= (1 - _SPARE) * seconds_left else None
