"""Trials whose process died under them: whose doing that was, nobody knows at first."""

from __future__ import annotations

from collections.abc import Collection

MOST_DEATHS = 3
"""Of the processes that a trial is in, without an evaluation in between: then it's the trial's own doing."""


class CrashTracker:
    """They go on one at a time, so that one of them can't take the others along again and again."""

    def __init__(self) -> None:
        self._deaths: dict[str, int] = {}

    def record_crash(self, trial_id: str) -> bool:
        """A process with this trial in it died; whether that has become the trial's own doing."""
        self._deaths[trial_id] = self._deaths.get(trial_id, 0) + 1
        return self._deaths[trial_id] >= MOST_DEATHS

    def clear(self, trial_id: str) -> None:
        """It has been evaluated since, or is over."""
        self._deaths.pop(trial_id, None)

    def next(self, running: Collection[str]) -> str | None:
        """Who goes on now; None while one of them runs, and where there are none."""
        if any(trial_id in self._deaths for trial_id in running):
            return None
        return next(iter(self._deaths), None)
