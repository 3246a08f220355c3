"""Trials of a search and their states, in memory as on disk; rebuilt from the records after a restart."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.controller.study import INFEASIBLE
from orchestrator.scheduling.scheduler import State, TrialView
from orchestrator.state.search import Search
from trials.config import TrialConfig
from trials.metrics.row_losses import RowLosses, compare
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialRecord
from trials.schedule import full_tokens
from trials.system.files import remove_folder


@dataclass
class Trial:
    """Live state of a trial in the controller."""

    trial_id: str
    origin: Origin
    name: str
    config: TrialConfig
    points: list[EvalPoint] = field(default_factory=list)
    ending: Ending | None = None
    is_running: bool = False
    noise: float = 0.0
    """Paired standard error of its loss against the best trial's at that time, in nats per token; 0.0: unknown."""

    @property
    def state(self) -> State:
        """State of the trial; one without an ending that does not run counts as paused, also if it was cut off."""
        if self.ending is not None:
            return State.INFEASIBLE if self.ending.kind in INFEASIBLE else State.OVER
        return State.RUNNING if self.is_running else State.PAUSED

    @property
    def tokens_seen(self) -> int:
        """Tokens seen at the last evaluation; 0 before the first."""
        return self.points[-1].tokens_seen if self.points else 0

    @property
    def best_eval_loss(self) -> float | None:
        """Lowest loss of all evaluations, in nats per completion token; None before the first evaluation."""
        return min((point.eval_loss for point in self.points), default=None)


class TrialTable:
    """All trials of a search except the base model, and the adapters of ended trials that are kept."""

    def __init__(self, records: Iterable[TrialRecord], keep_adapters: int) -> None:
        self._trials: dict[str, Trial] = {}
        self._keep = keep_adapters
        self._kept: list[tuple[float, str, Path]] = []
        self._best: tuple[float, RowLosses] | None = None
        for record in records:
            trial = Trial(record.id, record.origin, record.name, record.config, list(record.points), record.ending)
            self._trials[record.id] = trial
            if record.ending is not None and record.has_adapter and record.best_eval_loss is not None:
                bisect.insort(self._kept, (record.best_eval_loss, record.id, record.adapter))

    def __iter__(self) -> Iterator[Trial]:
        return iter(list(self._trials.values()))

    def __getitem__(self, trial_id: str) -> Trial:
        return self._trials[trial_id]

    def __contains__(self, trial_id: str) -> bool:
        return trial_id in self._trials

    def add(self, trial: Trial) -> None:
        """Add a new trial."""
        self._trials[trial.trial_id] = trial

    def replace(self, record: TrialRecord) -> Trial:
        """Replace points and ending of a trial by its record on disk, which may have more than was reported."""
        trial = self._trials[record.id]
        trial.points, trial.ending = list(record.points), record.ending
        return trial

    def record_rows(self, trial: Trial, losses: RowLosses | None) -> None:
        """Record the row losses of a trial's best evaluation; None: they are unknown.

        Sets the trial's `noise`, unless the trial is the new best.
        """
        if losses is None:
            return
        if self._best is None or losses.mean < self._best[0]:
            self._best = (losses.mean, losses)
            return
        try:
            trial.noise = compare(losses, self._best[1]).standard_error
        except ValueError:  # the rows differ, so that the losses are not paired
            trial.noise = 0.0

    def end(self, record: TrialRecord) -> list[Path]:
        """Record a trial's end; return the adapters that can be removed: all but the `keep_adapters` best."""
        trial = self.replace(record)
        if record.has_adapter and trial.best_eval_loss is not None:
            bisect.insort(self._kept, (trial.best_eval_loss, trial.trial_id, record.adapter))
        expendable, self._kept = self._kept[self._keep :], self._kept[: self._keep]
        return [adapter for _, _, adapter in expendable]


def view_of(trial: Trial, search: Search) -> TrialView:
    """Return a trial as the scheduler sees it; fractions are of the longest full trial."""
    hyperparameters = trial.config.hyperparameters
    values: dict[str, Any] = hyperparameters.model_dump()
    end = full_tokens(hyperparameters, search.epoch) / search.full_tokens if search.epoch else 1.0
    return TrialView(
        trial_id=trial.trial_id,
        values={name: _plain(values[name]) for name in search.recipe.space},
        points=tuple((point.tokens_seen / search.full_tokens, point.best_eval_loss) for point in trial.points),
        end=min(1.0, end),
        state=trial.state,
        is_start=trial.origin is Origin.START,
        noise=trial.noise,
    )


def remove_adapters(adapters: Iterable[Path]) -> None:
    """Remove the folders of these adapters from disk."""
    for adapter in adapters:
        remove_folder(adapter)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
