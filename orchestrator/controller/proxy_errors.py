"""Counts errors between a trial and the controller, in its trial proxy, report or store; retries are limited."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

MOST_PROXY_ERRORS = 6
"""Proxy errors in a row without an evaluation: at so many a trial is pruned.

With so many over all trials together, the search gives up.
"""
_FIRST_WAIT_SECONDS = 1.0
"""Seconds before the next dispatch, doubled with every error: a resource that is short may come back."""


class ExitKind(Enum):
    """Kind of a trial's exit from the process that ran it."""

    QUIETLY = "quietly"
    """The trial ended, or was told to stop."""
    DEATH = "death"
    """The trial's process is gone, or failed outside of the training."""
    PROXY_ERROR = "proxy_error"
    """An error in the trial proxy, in Ray Tune's report, or in the store that the trial's folder is on."""


@dataclass(frozen=True)
class TrialExit:
    """Exit of a trial; `error` is empty if the trial left quietly, or its process ended without a message."""

    how: ExitKind = ExitKind.QUIETLY
    error: str = ""


QUIETLY = TrialExit()
DIED = TrialExit(ExitKind.DEATH)
"""Exit of a trial whose process ended without a message."""


class ProxyErrors:
    """Proxy errors since the last evaluation, per trial and over all trials."""

    def __init__(self) -> None:
        self.in_a_row = 0
        """Proxy errors of all trials together since the last evaluation of any."""
        self._of: dict[str, int] = {}
        self._said: set[str] = set()
        self._until: datetime | None = None

    def record(self, trial_id: str, error: str, now: datetime) -> bool:
        """Record a proxy error; return whether its message is new."""
        self._of[trial_id] = self.count(trial_id) + 1
        self._until = now + timedelta(seconds=_FIRST_WAIT_SECONDS * 2**self.in_a_row)
        self.in_a_row += 1
        is_new = error not in self._said
        self._said.add(error)
        return is_new

    def count(self, trial_id: str) -> int:
        """Return the number of proxy errors of one trial since its last evaluation."""
        return self._of.get(trial_id, 0)

    def clear(self, trial_id: str) -> None:
        """Record that an evaluation of this trial was reported: resets its count, the total and the wait."""
        self.in_a_row = 0
        self._of.pop(trial_id, None)
        self._until = None

    def must_wait(self, now: datetime) -> bool:
        """Whether the next dispatch has to wait, because of the last proxy error."""
        return self._until is not None and now < self._until
