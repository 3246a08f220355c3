"""Where a group of processes that train trials together hears what comes next, and says what came of it.

One trial at a time. The proxy's side is that of `EngineWorker`; the other is that of the ranks, each of which asks for
every turn by itself. Knows neither Ray nor torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.channel import Finished, TrialChannel, Word
from trials.errors import PeerError
from trials.records.trial_dir import EvalPoint

_OPENING_FACTOR = 4.0
"""Starting the processes may take so many times as long as a step."""
_FAREWELL_SECONDS = 30.0
"""The others end soon after a rank that failed, unless they wait for it in vain."""
_MISSING_SECONDS = 10.0
"""A rank says every second how it gets on; one that hasn't for so long doesn't, whatever it said last."""


@dataclass
class _Task:
    """One trial's, from where it begins or goes on until it pauses or ends."""

    request: TrialRequest
    conversation: TrialChannel
    is_taken: bool = False
    """By a rank, so that the others must take it too."""
    ended: dict[int, str | None] = field(default_factory=dict)
    """The ranks that are through with it, with the traceback where it failed."""
    ended_at: float = 0.0
    """When the last of them was, on the monotonic clock."""
    is_over: threading.Event = field(default_factory=threading.Event)
    is_called_off: threading.Event = field(default_factory=threading.Event)


class GroupQueue:
    """Of one group of `ranks` processes; its methods may be called from any thread."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._turns: dict[int, _Task] = {}
        """Those that aren't over, by number."""
        self._count = 0
        self._of_trial: dict[str, _Task] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._silent: dict[int, tuple[float | None, float]] = {}
        self._opened = time.monotonic()

    # The proxy's side.

    def begin(self, request: TrialRequest) -> None:
        """Put one trial in the queue."""
        turn = _Task(request, TrialChannel())
        with self._changed:
            before = self._of_trial.get(request.trial_id)
            if before is not None:
                self._call_off(before)
            self._of_trial[request.trial_id] = turn
            self._turns[self._count] = turn
            self._count += 1
            self._changed.notify_all()

    def next_message(self, trial_id: str) -> Word:
        """Waits for what the trial says next; a trial that isn't here has ended."""
        turn = self._of_trial.get(trial_id)
        return Finished() if turn is None else turn.conversation.next_message()

    def resume(self, trial_id: str) -> None:
        """Lets a trial go on after an evaluation."""
        turn = self._of_trial.get(trial_id)
        if turn is not None:
            turn.conversation.reply(goes_on=True)

    def release(self, trial_id: str) -> None:
        """Stops a trial, if it's still here: at once if it waits for its word, else after the step in work.

        Waits until it's gone, so that nothing of it writes to its folder any more.
        """
        turn = self._of_trial.pop(trial_id, None)
        if turn is not None:
            self._call_off(turn)
            turn.is_over.wait()

    def seconds_since_progress(self) -> float | None:
        """Since the rank that has been silent longest got on; None: nobody is at work."""
        now = time.monotonic()
        if len(self._silent) < self._ranks:
            return (now - self._opened) / _OPENING_FACTOR
        leaving = [turn for turn in list(self._turns.values()) if turn.ended]
        if any(now - turn.ended_at > _FAREWELL_SECONDS for turn in leaving):
            return float("inf")
        # A process that was stopped while it had nothing to do says nothing of the work that it gets next.
        found = [
            (seconds or 0.0) + now - told
            for seconds, told in self._silent.values()
            if seconds is not None or now - told > _MISSING_SECONDS
        ]
        return max(found, default=None)

    # The ranks' side.

    def next_task(self, number: int) -> tuple[int, TrialRequest] | None:
        """The first turn from this number on that was not called off before it began; None: there will be no more.

        Waits for it. Every rank is given the same.
        """
        with self._changed:
            while not self._is_closed:
                found = min((open_ for open_ in self._turns if open_ >= number), default=None)
                if found is not None:
                    self._turns[found].is_taken = True
                    return found, self._turns[found].request
                self._changed.wait()
        return None

    def report(self, number: int, point: EvalPoint) -> bool:
        """Says what was evaluated, and waits for the answer; True: the trial goes on."""
        return self._turns[number].conversation.report(point)

    def log(self, number: int, figures: Mapping[str, float]) -> None:
        """Says what the trial logged of its training."""
        self._turns[number].conversation.log(figures)

    def warn(self, number: int, troubles: Mapping[str, str]) -> None:
        """Says what went wrong with reporting."""
        self._turns[number].conversation.warn(troubles)

    def wait_cancelled(self, number: int) -> None:
        """Waits until nobody waits for the trial any more, or it's over."""
        self._turns[number].is_called_off.wait()

    def finish(self, number: int, rank: int, error: str | None) -> None:
        """This rank is through with the trial; `error` is a traceback."""
        turn = self._turns[number]
        with self._changed:
            turn.ended[rank], turn.ended_at = error, time.monotonic()
            if len(turn.ended) < self._ranks:
                return
            del self._turns[number]
        errors = [found for _, found in sorted(turn.ended.items()) if found is not None]
        # Some may only have heard of another's trouble.
        errors.sort(key=lambda found: PeerError.__name__ in found.strip().splitlines()[-1])
        turn.conversation.finish(errors[0] if errors else None)
        turn.is_called_off.set()
        turn.is_over.set()

    def heartbeat(self, rank: int, seconds: float | None) -> None:
        """How long the rank's work has been silent; None: it has nothing to do."""
        self._silent[rank] = (seconds, time.monotonic())

    def close(self) -> None:
        """There will be no more turns."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _call_off(self, turn: _Task) -> None:
        turn.conversation.close()
        turn.is_called_off.set()
        with self._changed:
            if not turn.is_taken:
                # Nobody would say that it's over.
                self._turns = {number: other for number, other in self._turns.items() if other is not turn}
                turn.is_over.set()
