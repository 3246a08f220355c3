"""What a trial inside an engine and its proxy in Ray Tune say to each other. Knows neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from queue import SimpleQueue

from trials.records.trial_dir import EvalPoint


@dataclass(frozen=True)
class Finished:
    """The trial's last word; with a traceback if an error ended it."""

    error: str | None = None


@dataclass(frozen=True)
class LoggedMetrics:
    """What the trial logged of its training, by the names that W&B has them under. Nobody answers it."""

    figures: Mapping[str, float]


@dataclass(frozen=True)
class ReportingFailed:
    """What went wrong, where the trial is, with something that only reports; by what it's about. Nobody answers it."""

    troubles: Mapping[str, str]


Word = EvalPoint | LoggedMetrics | ReportingFailed | Finished


class TrialChannel:
    """Of one trial. Each side may be in a thread of its own, and whoever supervises them in a third."""

    def __init__(self) -> None:
        self._words: SimpleQueue[Word] = SimpleQueue()
        self._answers: SimpleQueue[bool] = SimpleQueue()
        self.is_broken_off = False
        """Whether nobody answers any more."""

    def report(self, point: EvalPoint) -> bool:
        """The trial's side: says what was evaluated, and waits for the answer; True: it goes on."""
        if self.is_broken_off:
            return False
        self._words.put(point)
        return self._answers.get()

    def log(self, figures: Mapping[str, float]) -> None:
        """The trial's side: says what it logged, and goes on at once."""
        self._words.put(LoggedMetrics(figures))

    def warn(self, troubles: Mapping[str, str]) -> None:
        """The trial's side: says what went wrong with reporting, if anything did, and goes on at once."""
        if troubles:
            self._words.put(ReportingFailed(troubles))

    def finish(self, error: str | None = None) -> None:
        """The trial's side: there will be nothing more."""
        self._words.put(Finished(error))

    def next_message(self) -> Word:
        """The proxy's side: waits for what the trial says next."""
        return self._words.get()

    def reply(self, *, goes_on: bool) -> None:
        """The proxy's side: whether the trial goes on after the evaluation that was heard last."""
        self._answers.put(goes_on)

    def close(self) -> None:
        """Neither side waits for the other again: the trial is told to stop when it asks, the proxy that it ended."""
        self.is_broken_off = True
        self._answers.put(False)
        self._words.put(Finished())
