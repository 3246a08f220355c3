"""Task queue between one trial proxy and the ranks of a worker group; one trial at a time.

Proxy side (as `orchestrator.execution.channel.Worker`): `begin`, `next_message`, `resume`, `release`.
Rank side: `next_task`, `report`, `log`, `warn`, `wait_cancelled`, `finish`, `heartbeat`.
Every rank receives the same tasks. Thread-safe. Imports neither Ray nor torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.channel import ChannelMessage, Finished, TrialChannel
from trials.errors import PeerError
from trials.records.trial_dir import EvalPoint

_OPENING_FACTOR = 4.0
"""Starting the processes may take so many times the limit for a step."""
_FAREWELL_SECONDS = 30.0
"""Seconds after the latest rank finished a task in which the others must finish it too; else they hang."""
_MISSING_SECONDS = 10.0
"""Seconds without a heartbeat after which a rank counts as silent; ranks send one every second."""


@dataclass
class _Task:
    """One segment of a trial."""

    request: TrialRequest
    channel: TrialChannel
    is_taken: bool = False
    """Whether a rank has taken the task, so that all others must take it too."""
    ended: dict[int, str | None] = field(default_factory=dict)
    """Ranks that have finished the task, with the traceback if it failed there, else None."""
    ended_at: float = 0.0
    """Time at which the latest rank finished, in seconds of the monotonic clock."""
    is_over: threading.Event = field(default_factory=threading.Event)
    is_cancelled: threading.Event = field(default_factory=threading.Event)


class GroupQueue:
    """Task queue of one group of `ranks` processes; its methods may be called from any thread."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._tasks: dict[int, _Task] = {}
        """Tasks that are not over, by number."""
        self._count = 0
        self._of_trial: dict[str, _Task] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._silent: dict[int, tuple[float | None, float]] = {}
        self._opened = time.monotonic()

    # Proxy side.

    def begin(self, request: TrialRequest) -> None:
        """Queue a task for one trial; an earlier task of this trial is cancelled."""
        task = _Task(request, TrialChannel())
        with self._changed:
            before = self._of_trial.get(request.trial_id)
            if before is not None:
                self._cancel(before)
            self._of_trial[request.trial_id] = task
            self._tasks[self._count] = task
            self._count += 1
            self._changed.notify_all()

    def next_message(self, trial_id: str) -> ChannelMessage:
        """Wait for the trial's next message; for a trial without a task, `Finished` at once."""
        task = self._of_trial.get(trial_id)
        return Finished() if task is None else task.channel.next_message()

    def resume(self, trial_id: str) -> None:
        """Let a trial go on after an evaluation."""
        task = self._of_trial.get(trial_id)
        if task is not None:
            task.channel.reply(goes_on=True)

    def release(self, trial_id: str) -> None:
        """Stop a trial if it has a task: at once if it waits for a reply, else after the current step.

        Waits until the task is over, so that no rank writes to the trial's folder any more.
        """
        task = self._of_trial.pop(trial_id, None)
        if task is not None:
            self._cancel(task)
            task.is_over.wait()

    def seconds_since_progress(self) -> float | None:
        """Return the seconds since the longest-silent rank made progress; None: no rank has work.

        Infinite if some rank finished a task long ago, and another one has not.
        """
        now = time.monotonic()
        if len(self._silent) < self._ranks:
            return (now - self._opened) / _OPENING_FACTOR
        leaving = [task for task in list(self._tasks.values()) if task.ended]
        if any(now - task.ended_at > _FAREWELL_SECONDS for task in leaving):
            return float("inf")
        # A process that was suspended (SIGSTOP) while idle would never report the work that it gets next.
        found = [
            (seconds or 0.0) + now - told
            for seconds, told in self._silent.values()
            if seconds is not None or now - told > _MISSING_SECONDS
        ]
        return max(found, default=None)

    # Rank side.

    def next_task(self, number: int) -> tuple[int, TrialRequest] | None:
        """Wait for the first task from this number on; return its number and request. None: the queue is closed.

        Tasks that were cancelled before a rank took them are skipped. Every rank gets the same tasks.
        """
        with self._changed:
            while not self._is_closed:
                found = min((open_ for open_ in self._tasks if open_ >= number), default=None)
                if found is not None:
                    self._tasks[found].is_taken = True
                    return found, self._tasks[found].request
                self._changed.wait()
        return None

    def report(self, number: int, point: EvalPoint) -> bool:
        """Report an evaluation and wait for the reply; return whether the trial goes on."""
        return self._tasks[number].channel.report(point)

    def log(self, number: int, figures: Mapping[str, float]) -> None:
        """Pass on metrics that the trial logged."""
        self._tasks[number].channel.log(figures)

    def warn(self, number: int, troubles: Mapping[str, str]) -> None:
        """Pass on failures of reporting."""
        self._tasks[number].channel.warn(troubles)

    def wait_cancelled(self, number: int) -> None:
        """Wait until the task is cancelled or over."""
        self._tasks[number].is_cancelled.wait()

    def finish(self, number: int, rank: int, error: str | None) -> None:
        """Record that this rank has finished the task; `error` is its traceback, None if it did not fail."""
        task = self._tasks[number]
        with self._changed:
            task.ended[rank], task.ended_at = error, time.monotonic()
            if len(task.ended) < self._ranks:
                return
            del self._tasks[number]
        errors = [found for _, found in sorted(task.ended.items()) if found is not None]
        # A PeerError only repeats the failure of another rank, so it comes last.
        errors.sort(key=lambda found: PeerError.__name__ in found.strip().splitlines()[-1])
        task.channel.finish(errors[0] if errors else None)
        task.is_cancelled.set()
        task.is_over.set()

    def heartbeat(self, rank: int, seconds: float | None) -> bool:
        """Record the seconds since the rank made progress; None: it has no work. Return whether the queue is closed."""
        self._silent[rank] = (seconds, time.monotonic())
        return self._is_closed

    def close(self) -> None:
        """Close the queue: there are no more tasks."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _cancel(self, task: _Task) -> None:
        task.channel.close()
        task.is_cancelled.set()
        with self._changed:
            if not task.is_taken:
                # No rank has it, so none would finish it.
                self._tasks = {number: other for number, other in self._tasks.items() if other is not task}
                task.is_over.set()
