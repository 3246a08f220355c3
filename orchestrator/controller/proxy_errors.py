"""Errors of what speaks for trials under Ray: nobody's failure, and no reason to run them again for ever either."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

MOST_PROXY_ERRORS = 6
"""In a row without an evaluation: of one trial then it's set aside, of all of them the search gives up."""
_FIRST_WAIT_SECONDS = 1.0
"""Before a trial is handed out again; each time twice as long, as what is short may come back."""


class ExitKind(Enum):
    """How a trial left what ran it."""

    QUIETLY = "quietly"
    """It ended, or was told to stop."""
    DEATH = "death"
    """Its process is gone, or broke off outside of its training."""
    PROXY_ERROR = "proxy_error"
    """What speaks for it failed: its proxy, Ray Tune's report, the store that its folder is on."""


@dataclass(frozen=True)
class TrialExit:
    """How a trial left, with the error that made it; empty: its process ended without a word."""

    how: ExitKind = ExitKind.QUIETLY
    error: str = ""


QUIETLY = TrialExit()
DIED = TrialExit(ExitKind.DEATH)
"""Without a word."""


class ProxyErrors:
    """Those since evaluations were heard of."""

    def __init__(self) -> None:
        self.in_a_row = 0
        """Of all trials together."""
        self._of: dict[str, int] = {}
        self._said: set[str] = set()
        self._until: datetime | None = None

    def record(self, trial_id: str, error: str, now: datetime) -> bool:
        """One more; whether its error is new."""
        self._of[trial_id] = self.count(trial_id) + 1
        self._until = now + timedelta(seconds=_FIRST_WAIT_SECONDS * 2**self.in_a_row)
        self.in_a_row += 1
        is_new = error not in self._said
        self._said.add(error)
        return is_new

    def count(self, trial_id: str) -> int:
        """Of one trial, since it was evaluated last."""
        return self._of.get(trial_id, 0)

    def clear(self, trial_id: str) -> None:
        """An evaluation of this trial was heard of."""
        self.in_a_row = 0
        self._of.pop(trial_id, None)
        self._until = None

    def must_wait(self, now: datetime) -> bool:
        """Whether the next trial is better handed out a little later."""
        return self._until is not None and now < self._until
