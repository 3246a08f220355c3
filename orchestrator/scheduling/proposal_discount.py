"""Whether new configurations are worth what they promise."""

from __future__ import annotations

import math

_FIRST_BELIEF = 3.0
"""So many trials' worth of the belief that promises are kept."""
_MEMORY = 0.9
_MOST = 5.0


class ProposalDiscount:
    """What configurations bid before anything was known of them, against what they bid after their first evaluation.

    If the forecasts are right both are the same on average. They aren't where the best of many forecasts is taken
    (the winner's curse), where the space has no more configurations as good, or where the model is wrong: then new
    configurations would have the machine again and again at the expense of promising paused ones.
    """

    def __init__(self) -> None:
        self._made: dict[str, float] = {}
        self._sum = self._count = _FIRST_BELIEF

    def record_predicted(self, trial_id: str, bid: float) -> None:
        """A new trial starts because of this bid."""
        if 0 < bid < math.inf:
            self._made[trial_id] = bid

    def record_realised(self, trial_id: str, bid: float) -> None:
        """What it bids after its first evaluation; 0.0 if it failed. Later calls count for nothing."""
        made = self._made.pop(trial_id, None)
        if made is not None:
            self._sum = _MEMORY * self._sum + min(bid / made, _MOST)
            self._count = _MEMORY * self._count + 1

    @property
    def factor(self) -> float:
        """The mean share of what was promised, newer trials counting more; 1.0 before anything is known."""
        return self._sum / self._count
