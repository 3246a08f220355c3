"""What happens in a search, for those who show it. The conductor emits, consoles listen."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.halving import RungVerdict
from trials.config import TrialConfig
from trials.records import Ending, EvalPoint, Origin


@dataclass(frozen=True)
class TrialStarted:
    """A trial was handed out to be run."""

    trial_id: str
    origin: Origin
    name: str
    config: TrialConfig


@dataclass(frozen=True)
class TrialEvaluated:
    """A trial reported an evaluation; `rungs` are those that it reached with it."""

    trial_id: str
    point: EvalPoint
    rungs: tuple[RungVerdict, ...]


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over; `ending` None: it was cut off."""

    trial_id: str
    ending: Ending | None
    best_eval_loss: float | None


@dataclass(frozen=True)
class Message:
    """One plain sentence about the search."""

    text: str


Event = TrialStarted | TrialEvaluated | TrialEnded | Message
