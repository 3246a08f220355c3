"""Ratio of realised to predicted acquisition value of new configurations.

The surrogate overestimates the best of many candidates (the winner's curse), and the space may have no more
configurations as good. Without a correction, new configurations would win every slot over promising paused trials.
"""

from __future__ import annotations

import math

_PRIOR_TRIALS = 3.0
"""Weight, in trials, of the prior that the ratio is 1."""
_DECAY = 0.9
_MOST = 5.0


class ProposalDiscount:
    """Exponential mean over trials: value after the first evaluation divided by the value before the start.

    Values are logarithms.
    """

    def __init__(self) -> None:
        self._predicted: dict[str, float] = {}
        self._sum = self._count = _PRIOR_TRIALS

    def record_predicted(self, trial_id: str, value: float) -> None:
        """Record the acquisition value for which a new trial was started."""
        if math.isfinite(value):
            self._predicted[trial_id] = value

    def record_realised(self, trial_id: str, value: float) -> None:
        """Record a trial's value after its first evaluation; minus infinity: it failed. Later calls are ignored."""
        predicted = self._predicted.pop(trial_id, None)
        if predicted is not None:
            self._sum = _DECAY * self._sum + math.exp(min(value - predicted, math.log(_MOST)))
            self._count = _DECAY * self._count + 1

    @property
    def factor(self) -> float:
        """The mean ratio; a new configuration's value is multiplied by it."""
        return self._sum / self._count
