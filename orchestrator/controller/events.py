"""What happens in a search, for those who show it. The controller emits, consoles listen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trials.config import TrialConfig
from trials.records.trial_dir import Ending, EvalPoint, Origin


@dataclass(frozen=True)
class TrialStarted:
    """A trial was handed out to be run; `tokens_seen` says how far it had come already, of so many in a full trial."""

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
    """A trial waits on disk, to be resumed when that looks most promising; and why it doesn't go on."""

    trial_id: str
    reason: str


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over."""

    trial_id: str
    ending: Ending
    best_eval_loss: float | None


@dataclass(frozen=True)
class Notice:
    """One plain sentence about the search."""

    text: str


Event = TrialStarted | TrialEvaluated | TrialPaused | TrialEnded | Notice


def in_turn(*listeners: Callable[[Event], None]) -> Callable[[Event], None]:
    """One listener that tells them all."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell
