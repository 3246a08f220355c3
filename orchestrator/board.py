"""The state of a search as people watch it: events in, rows out. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.events import Event, TrialEnded, TrialEvaluated, TrialStarted
from trials.records import EvalPoint, Origin


@dataclass
class Row:
    """One trial: what it is, where it stands."""

    trial_id: str
    name: str
    settings: str
    state: str = "running"
    rungs: int = 0
    point: EvalPoint | None = None
    score: float | None = None
    """At the latest evaluation that was scored."""


@dataclass
class Board:
    """All trials of this session, and the best so far against the base."""

    varied: tuple[str, ...]
    rows: dict[str, Row] = field(default_factory=dict)
    base_eval_loss: float | None = None

    def take(self, event: Event) -> None:
        """Takes in one event."""
        if isinstance(event, TrialStarted):
            self.rows[event.trial_id] = Row(event.trial_id, event.name, self._settings(event))
        elif isinstance(event, TrialEvaluated):
            row = self.rows[event.trial_id]
            row.point = event.point
            row.score = row.score if event.point.score is None else event.point.score
            row.rungs += sum(verdict.passes for verdict in event.rungs)
            if row.name == Origin.BASE.value:
                self.base_eval_loss = event.point.eval_loss
        elif isinstance(event, TrialEnded):
            self.rows[event.trial_id].state = event.ending.kind.value if event.ending else "cut off"

    @property
    def best(self) -> Row | None:
        """The trained trial with the lowest loss so far."""
        evaluated = [row for row in self.rows.values() if row.point and row.name != Origin.BASE.value]
        return min(evaluated, key=lambda row: row.point.best_eval_loss if row.point else 0.0, default=None)

    def _settings(self, event: TrialStarted) -> str:
        if event.origin is Origin.BASE:
            return "evaluated, not trained"
        values = event.config.hyperparameters.model_dump()
        return " ".join(f"{_short(name)}={_value(values[name])}" for name in self.varied)


def _short(name: str) -> str:
    known = {"learning_rate": "lr", "effective_batch": "batch", "target_modules": "targets"}
    return known.get(name, name.removeprefix("lora_").removesuffix("_fraction"))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2g}"
    return "+".join(value) if isinstance(value, tuple | list) else str(value)
