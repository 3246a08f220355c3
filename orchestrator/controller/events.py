"""Events of a search: the controller emits them, displays and exporters listen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trials.config import TrialConfig
from trials.records.trial_dir import Ending, EvalPoint, Origin


@dataclass(frozen=True)
class TrialStarted:
    """A trial was dispatched; it resumes at `tokens_seen` of the `full_tokens` of the longest full trial."""

    trial_id: str
    origin: Origin
    name: str
    config: TrialConfig
    full_tokens: int
    tokens_seen: int = 0


@dataclass(frozen=True)
class TrialEvaluated:
    """A trial reported an evaluation."""

    trial_id: str
    point: EvalPoint


@dataclass(frozen=True)
class TrialPaused:
    """A trial paused, for this reason; its checkpoint is on disk, and it may be resumed later."""

    trial_id: str
    reason: str


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over for good; `best_eval_loss` None: it was never evaluated, or could not be read."""

    trial_id: str
    ending: Ending
    best_eval_loss: float | None


@dataclass(frozen=True)
class Notice:
    """One sentence for people about the search."""

    text: str


Event = TrialStarted | TrialEvaluated | TrialPaused | TrialEnded | Notice


def in_turn(*listeners: Callable[[Event], None]) -> Callable[[Event], None]:
    """Return one listener that passes every event to all `listeners`, in order."""

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return emit
