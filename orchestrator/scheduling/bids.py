"""What paused trials bid for the machine."""

from __future__ import annotations

import heapq


class Bids:
    """One for each paused trial, the highest found at once however many there are."""

    def __init__(self) -> None:
        self._bids: dict[str, float] = {}
        self._highest: list[tuple[float, str]] = []

    def put(self, trial_id: str, bid: float) -> None:
        """In place of what it bade before, if anything."""
        self._bids[trial_id] = bid
        heapq.heappush(self._highest, (-bid, trial_id))

    def withdraw(self, trial_id: str) -> None:
        """It runs, or is over."""
        self._bids.pop(trial_id, None)

    def best(self) -> tuple[str, float] | None:
        """Whose bid is highest, and how high; of equal ones the first id's."""
        # Bids that were withdrawn or made anew since are still in the heap.
        while self._highest and self._bids.get(self._highest[0][1]) != -self._highest[0][0]:
            heapq.heappop(self._highest)
        if not self._highest:
            return None
        bid, trial_id = self._highest[0]
        return trial_id, -bid

    def ranked(self) -> list[str]:
        """All bidders, the highest bid first."""
        return sorted(self._bids, key=lambda trial_id: (-self._bids[trial_id], trial_id))
