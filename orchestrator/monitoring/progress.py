"""Progress of a search for display: events in, rows out. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.controller.events import Event, TrialEnded, TrialEvaluated, TrialPaused, TrialStarted
from trials.records.trial_dir import EvalPoint, Origin
from trials.state import TrialState

_UNTRAINED = {Origin.BASE: "evaluated, not trained", Origin.PROBE: "measures the speed"}


@dataclass
class TrialProgress:
    """Name, configuration and state of one trial."""

    trial_id: str
    name: str
    settings: str
    full_tokens: int
    """Tokens of a full trial."""
    state: TrialState = TrialState.RUNNING
    point: EvalPoint | None = None
    score: float | None = None
    """Mean score at the latest scored evaluation; None before that."""


@dataclass
class Progress:
    """All trials of this session by id, and the base model's eval loss in nats per token (None: not evaluated yet).

    `varied` names the hyperparameters that the search varies; rows show only those.
    """

    varied: tuple[str, ...]
    rows: dict[str, TrialProgress] = field(default_factory=dict)
    base_eval_loss: float | None = None

    def apply(self, event: Event) -> None:
        """Update the rows with one event."""
        if isinstance(event, TrialStarted):
            begun = TrialProgress(event.trial_id, event.name, self._settings(event), event.full_tokens)
            self.rows.setdefault(event.trial_id, begun).state = TrialState.RUNNING
        elif isinstance(event, TrialEvaluated):
            row = self.rows[event.trial_id]
            row.point = event.point
            row.score = row.score if event.point.score is None else event.point.score
            if row.name == Origin.BASE.value:
                self.base_eval_loss = event.point.eval_loss
        elif isinstance(event, TrialPaused):
            self.rows[event.trial_id].state = TrialState.PAUSED
        elif isinstance(event, TrialEnded) and event.trial_id in self.rows:
            self.rows[event.trial_id].state = event.ending.kind

    @property
    def best(self) -> TrialProgress | None:
        """Trained trial with the lowest eval loss so far; None before the first evaluation."""
        evaluated = [row for row in self.rows.values() if row.point and row.name not in _UNTRAINED]
        return min(evaluated, key=lambda row: row.point.best_eval_loss if row.point else 0.0, default=None)

    def states(self) -> dict[str, TrialState]:
        """Return the states of the trained trials by id; base model and speed probe are left out."""
        return {row.trial_id: row.state for row in self.rows.values() if row.name not in _UNTRAINED}

    def _settings(self, event: TrialStarted) -> str:
        if event.origin in _UNTRAINED:
            return _UNTRAINED[event.origin]
        values = event.config.hyperparameters.model_dump()
        return " ".join(f"{_short(name)}={_value(values[name])}" for name in self.varied)


def _short(name: str) -> str:
    known = {"learning_rate": "lr", "effective_batch": "batch", "target_modules": "targets"}
    return known.get(name, name.removeprefix("lora_").removesuffix("_fraction"))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2g}"
    return "+".join(value) if isinstance(value, tuple | list) else str(value)
