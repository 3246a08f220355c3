"""Message channel between a trial in a worker and its proxy in Ray Tune. Imports neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from queue import SimpleQueue

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


Word = EvalPoint | LoggedMetrics | ReportingFailed | Finished


class TrialChannel:
    """Channel of one trial. Each side may be in a thread of its own, and the caller of `close` in a third."""

    def __init__(self) -> None:
        self._words: SimpleQueue[Word] = SimpleQueue()
        self._answers: SimpleQueue[bool] = SimpleQueue()
        self.is_broken_off = False
        """Whether the channel is closed, so that the trial gets no reply but to stop."""

    def report(self, point: EvalPoint) -> bool:
        """Trial side: send an evaluation and wait for the reply; return whether the trial goes on."""
        if self.is_broken_off:
            return False
        self._words.put(point)
        return self._answers.get()

    def log(self, figures: Mapping[str, float]) -> None:
        """Trial side: send metrics, without waiting."""
        self._words.put(LoggedMetrics(figures))

    def warn(self, troubles: Mapping[str, str]) -> None:
        """Trial side: send failures of reporting if there are any, without waiting."""
        if troubles:
            self._words.put(ReportingFailed(troubles))

    def finish(self, error: str | None = None) -> None:
        """Trial side: send the last message."""
        self._words.put(Finished(error))

    def next_message(self) -> Word:
        """Proxy side: wait for the trial's next message."""
        return self._words.get()

    def reply(self, *, goes_on: bool) -> None:
        """Proxy side: reply to the last evaluation with whether the trial goes on."""
        self._answers.put(goes_on)

    def close(self) -> None:
        """Close the channel, so that neither side waits for the other: the trial stops, the proxy gets `Finished`."""
        self.is_broken_off = True
        self._answers.put(False)
        self._words.put(Finished())
