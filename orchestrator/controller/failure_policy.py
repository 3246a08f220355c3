"""Failure policy of a search: which trials are retried, which have failed, and when the search gives up.

A process that died may have held several trials, and any of them may be the cause. So crashed trials are retried one at
a time, and one that goes on crashing has failed. An error between a trial and the controller (proxy error) is not the
trial's fault: the trial is dispatched again after a wait. The search gives up when such errors, or failed trials,
follow each other without a success in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from trials.console.logs import LOG_FILE
from trials.records.trial_dir import Ending, TrialRecord
from trials.state import TrialState

MOST_DEATHS = 3
"""Crashes in a row, without an evaluation in between, after which the trial itself counts as the cause."""
MOST_PROXY_ERRORS = 6
"""Proxy errors in a row without an evaluation: at so many a trial is pruned.

With so many over all trials together, the search gives up.
"""
MOST_FAILURES_IN_A_ROW = 5
"""Failed trials in a row after which the search gives up: configurations are then unlikely to be the cause."""
_FIRST_WAIT_SECONDS = 1.0
"""Seconds before the next dispatch after a proxy error, doubled with every further one: what is short may come back."""


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


class FailurePolicy:
    """Counts crashes, proxy errors and failed trials of a search; `say` shows a sentence to people."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.gave_up: str | None = None
        """Reason for which the search starts nothing more although there is time; None: it has not given up."""
        self._say = say
        self._crashes: Counter[str] = Counter()
        """Crashes of each trial since its last evaluation."""
        self._proxy_errors: Counter[str] = Counter()
        """Proxy errors of each trial since its last evaluation."""
        self._proxy_errors_in_a_row = 0
        """Proxy errors of all trials together since the last evaluation of any."""
        self._wait_until: datetime | None = None
        self._said: set[str] = set()
        self._failures_in_a_row = 0

    def record_result(self, trial_id: str) -> None:
        """Record that an evaluation of this trial was reported: resets its counts, and all that count proxy errors."""
        self._crashes.pop(trial_id, None)
        self._proxy_errors.pop(trial_id, None)
        self._proxy_errors_in_a_row, self._wait_until = 0, None

    def record_exit(self, trial_id: str, left: TrialExit, now: datetime) -> Ending | None:
        """Record how a trial that has not ended left its process; return its ending, or None if it goes on later."""
        if left.how is ExitKind.DEATH:
            return self._record_crash(trial_id, left.error)
        if left.how is ExitKind.PROXY_ERROR:
            return self._record_proxy_error(trial_id, left.error, now)
        return None

    def record_ending(self, record: TrialRecord) -> None:
        """Record that a trial has ended: it isn't retried any more, and the search may give up if it failed."""
        self.forget(record.id)
        if record.ending is None or record.ending.kind is not TrialState.FAILED:
            self._failures_in_a_row = 0
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row == MOST_FAILURES_IN_A_ROW:
            said = f"{MOST_FAILURES_IN_A_ROW} trials in a row failed, the last one, {record.id}, with"
            self.give_up(f"{said}: {in_a_line(record.ending.reason)} (see {record.folder / LOG_FILE})")

    def forget(self, trial_id: str) -> None:
        """Forget the crashes of a trial that is over."""
        self._crashes.pop(trial_id, None)

    def next_crashed(self, running: Collection[str]) -> str | None:
        """Return the crashed trial to retry now; None while one is in `running`, and if there are none."""
        if any(trial_id in self._crashes for trial_id in running):
            return None
        return next(iter(self._crashes), None)

    def must_wait(self, now: datetime) -> bool:
        """Whether the next dispatch has to wait, because of the last proxy error."""
        return self._wait_until is not None and now < self._wait_until

    def give_up(self, reason: str) -> None:
        """Let the search start nothing more; the first reason counts."""
        if self.gave_up is None:
            self.gave_up = reason
            self._say(f"{reason}. Nothing more is started")

    def say_once(self, about: str, text: str) -> None:
        """Show a sentence, unless one `about` the same was shown in this session."""
        if about not in self._said:
            self._said.add(about)
            self._say(text)

    def _record_crash(self, trial_id: str, error: str) -> Ending | None:
        self._crashes[trial_id] += 1
        if self._crashes[trial_id] >= MOST_DEATHS:
            what = f"{error}," if error else "its process ended without an error message"
            return Ending(TrialState.FAILED, f"{what} {MOST_DEATHS} times in a row; see ray/{trial_id}")
        if error:
            self._say(f"trial {trial_id} was cut off and goes on from its last checkpoint: {error}")
        else:
            self._say(f"the process of trial {trial_id} died; it goes on from its last checkpoint")
        return None

    def _record_proxy_error(self, trial_id: str, error: str, now: datetime) -> Ending | None:
        self._proxy_errors[trial_id] += 1
        self._wait_until = now + timedelta(seconds=_FIRST_WAIT_SECONDS * 2**self._proxy_errors_in_a_row)
        self._proxy_errors_in_a_row += 1
        said = f"the reporting process of trial {trial_id} failed, which isn't the trial's fault; it's run again"
        self.say_once(error, f"{said}: {error}")
        often = f"failed {MOST_PROXY_ERRORS} times"
        if self._proxy_errors_in_a_row >= MOST_PROXY_ERRORS:
            self.give_up(f"the reporting processes of trials {often} in a row, the last time with: {error}")
        elif self._proxy_errors[trial_id] >= MOST_PROXY_ERRORS:
            reason = f"set aside through no fault of its own, as its reporting process {often}: {error}"
            return Ending(TrialState.PRUNED, reason)
        return None


def in_a_line(reason: str) -> str:
    """Return the first line of an error's text, without a period, for use in a sentence."""
    return reason.strip().split("\n")[0].rstrip(".")
