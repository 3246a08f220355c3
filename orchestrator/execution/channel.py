"""Interface of a worker, and the message channel between a trial in it and the trial's proxy in Ray Tune.

Imports neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from orchestrator.controller.trial_request import TrialRequest
from trials.records.trial_dir import EvalPoint


@dataclass(frozen=True)
class Finished:
    """Last message of a trial; `error` is the traceback of the error that ended it, if any."""

    error: str | None = None


@dataclass(frozen=True)
class LoggedMetrics:
    """Metrics that a trial logged, by their names in W&B. Gets no reply."""

    figures: Mapping[str, float]


@dataclass(frozen=True)
class ReportingFailed:
    """Failures of reporting in the trial's process: error texts by the part that failed, such as W&B. Gets no reply."""

    troubles: Mapping[str, str]


ChannelMessage = EvalPoint | LoggedMetrics | ReportingFailed | Finished


class Worker(Protocol):
    """Process, or group of processes, that runs trials; a Ray actor, whose methods may be called from any thread."""

    def ready(self) -> int:
        """Return the process id; the call is answered as soon as the process has started."""

    def begin(self, request: TrialRequest) -> None:
        """Start one trial. It waits for an earlier run of the same trial that has not ended yet."""

    def next_message(self, trial_id: str) -> ChannelMessage:
        """Wait for the trial's next message; for a trial that is not here, `Finished` at once."""

    def resume(self, trial_id: str) -> None:
        """Let a trial go on after an evaluation."""

    def release(self, trial_id: str) -> None:
        """Stop a trial if it is still here: at once if it waits for a reply, else after the current step.

        Waits until nothing of it runs, so that nothing writes to the trial's folder any more.
        """

    def seconds_since_progress(self) -> float | None:
        """Return the seconds since the longest-silent thread or rank made progress; None: none has work."""

    def leave(self) -> None:
        """End the process because it hangs, with the tracebacks of all threads on stderr; Ray starts it again.

        The files of trials are consistent at any moment.
        """


class TrialChannel:
    """Channel of one trial. Each side may be in a thread of its own, and the caller of `close` in a third."""

    def __init__(self) -> None:
        self._messages: SimpleQueue[ChannelMessage] = SimpleQueue()
        self._replies: SimpleQueue[bool] = SimpleQueue()
        self.is_closed = False
        """Whether the channel is closed, so that the trial gets no reply but to stop."""

    def report(self, point: EvalPoint) -> bool:
        """Trial side: send an evaluation and wait for the reply; return whether the trial goes on."""
        if self.is_closed:
            return False
        self._messages.put(point)
        return self._replies.get()

    def log(self, figures: Mapping[str, float]) -> None:
        """Trial side: send metrics, without waiting."""
        self._messages.put(LoggedMetrics(figures))

    def warn(self, troubles: Mapping[str, str]) -> None:
        """Trial side: send failures of reporting if there are any, without waiting."""
        if troubles:
            self._messages.put(ReportingFailed(troubles))

    def finish(self, error: str | None = None) -> None:
        """Trial side: send the last message."""
        self._messages.put(Finished(error))

    def next_message(self) -> ChannelMessage:
        """Proxy side: wait for the trial's next message."""
        return self._messages.get()

    def reply(self, *, goes_on: bool) -> None:
        """Proxy side: reply to the last evaluation with whether the trial goes on."""
        self._replies.put(goes_on)

    def close(self) -> None:
        """Close the channel, so that neither side waits for the other: the trial stops, the proxy gets `Finished`."""
        self.is_closed = True
        self._replies.put(False)
        self._messages.put(Finished())
