"""Tracks crashed trials: at first it is unknown which trial in a process made it die."""

from __future__ import annotations

from collections.abc import Collection

MOST_DEATHS = 3
"""Crashes in a row, without an evaluation in between, after which the trial itself counts as the cause."""


class CrashTracker:
    """Retries crashed trials one at a time, so that the one at fault cannot crash the others again."""

    def __init__(self) -> None:
        self._deaths: dict[str, int] = {}

    def record_crash(self, trial_id: str) -> bool:
        """Record that a process with this trial died; return whether the trial now counts as the cause."""
        self._deaths[trial_id] = self._deaths.get(trial_id, 0) + 1
        return self._deaths[trial_id] >= MOST_DEATHS

    def clear(self, trial_id: str) -> None:
        """Forget the crashes of a trial that was evaluated since, or is over."""
        self._deaths.pop(trial_id, None)

    def next(self, running: Collection[str]) -> str | None:
        """Return the crashed trial to retry now; None while one is in `running`, and if there are none."""
        if any(trial_id in self._deaths for trial_id in running):
            return None
        return next(iter(self._deaths), None)
