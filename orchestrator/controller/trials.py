"""Trials of a search and their states, in memory as on disk; rebuilt from the records after a restart."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.planning.throughput import ThroughputModel
from orchestrator.planning.trial_length import shortened
from orchestrator.sampling.distributions import encode_all
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.state.trial_folders import set_aside
from orchestrator.surrogate.trial_view import TrialView
from search_spaces.schema import Choices, Dimension, Recipe
from trials.config import LENGTHS, Hyperparameters, TrialConfig
from trials.errors import first_line
from trials.metrics.row_losses import RowLosses, compare
from trials.records.checkpoints import remove_checkpoints
from trials.records.rewind import restore_latest
from trials.records.trial_dir import DamagedTrial, Ending, EvalPoint, Origin, TrialDir, TrialRecord, read_trial
from trials.schedule import full_tokens
from trials.state import TrialState
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
    def state(self) -> TrialState:
        """State of the trial; one without an ending that does not run counts as paused, also if it was cut off."""
        if self.ending is not None:
            return self.ending.kind
        return TrialState.RUNNING if self.is_running else TrialState.PAUSED

    @property
    def tokens_seen(self) -> int:
        """Tokens seen at the last evaluation; 0 before the first."""
        return self.points[-1].tokens_seen if self.points else 0

    @property
    def best_eval_loss(self) -> float | None:
        """Lowest loss of all evaluations, in nats per completion token; None before the first evaluation."""
        return min((point.eval_loss for point in self.points), default=None)


class TrialTable:
    """All trials of a search except the base model, in memory and on disk, and the adapters of ended trials."""

    def __init__(self, run: RunDir, records: Iterable[TrialRecord], keep_adapters: int) -> None:
        self._run = run
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

    def reload(self, trial: Trial) -> TrialRecord:
        """Replace points and ending of a trial by those on disk, which may be more than was reported; return these.

        Raises `RunFolderError` if its folder is damaged.
        """
        record = read_trial(self._run.trial(trial.trial_id))
        trial.points, trial.ending = list(record.points), record.ending
        return record

    def restore(self, trial: Trial) -> bool:
        """Restore a trial to its newest checkpoint; return whether there is one.

        Raises `RunFolderError` or `OSError` if the trial can't be restored.
        """
        checkpoint = restore_latest(self._run.trial(trial.trial_id))
        self.reload(trial)
        return checkpoint is not None

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

    def end(self, trial: Trial, ending: Ending) -> TrialRecord:
        """Write a trial's ending, unless its folder has one already, and remove what is not needed any more.

        Of adapters of ended trials, the `keep_adapters` best are kept.
        """
        folder = self._run.trial(trial.trial_id)
        TrialDir(folder).end(ending)
        record = self.reload(trial)
        # Checkpoints would take half a gigabyte and more per trial (trials.records.checkpoints); only the adapter is
        # needed from now on.
        remove_checkpoints(folder)
        _remove(folder.glob("before-*/adapter"))  # of segments that were trained again
        if record.has_adapter and trial.best_eval_loss is not None:
            bisect.insort(self._kept, (trial.best_eval_loss, trial.trial_id, record.adapter))
        _remove(adapter for _, _, adapter in self._kept[self._keep :])
        self._kept = self._kept[: self._keep]
        return record

    def lose(self, trial: Trial, error: Exception) -> Ending:
        """End a trial as failed whose folder can't be used, because of `error`, and set the folder aside."""
        folder = self._run.trial(trial.trial_id)
        reason = f"its folder can't be used: {first_line(error)}"
        moved = set_aside(self._run.path, [DamagedTrial(trial.trial_id, folder, reason)] if folder.exists() else [])
        where = "".join(f"; what is left of it is {path}" for path in moved.values())
        trial.ending, trial.points = Ending(TrialState.FAILED, reason + where), []
        return trial.ending


def view_of(trial: Trial, search: Search, throughput: ThroughputModel) -> TrialView:
    """Return a trial as the scheduler sees it; fractions are of the longest full trial."""
    hyperparameters = trial.config.hyperparameters
    own, mean = throughput.seconds_per_token(trial.config), throughput.seconds_per_token()
    end = full_tokens(hyperparameters, search.epoch) / search.full_tokens if search.epoch else 1.0
    return TrialView(
        trial_id=trial.trial_id,
        values=proposed_values(hyperparameters, search.recipe.space, search.shortened or 1.0),
        points=tuple((point.tokens_seen / search.full_tokens, point.best_eval_loss) for point in trial.points),
        end=min(1.0, end),
        state=trial.state,
        is_start=trial.origin is Origin.START,
        noise=trial.noise,
        pace=1.0 if own is None or mean is None else own / mean,
    )


def proposed_values(hyperparameters: Hyperparameters, space: Mapping[str, Dimension], factor: float) -> dict[str, Any]:
    """Return a trial's hyperparameters as proposed; those of its length were shortened by `factor` for the trial."""
    values = shortened(hyperparameters, 1 / factor).model_dump()
    return encode_all({name: _within(values[name], each) for name, each in space.items()}, space)


def varies_length(space: Mapping[str, Dimension]) -> bool:
    """Whether configurations of a space may differ in the length of a full trial."""
    return any(name in space for name in LENGTHS)


def shared_scheduler(recipe: Recipe) -> str:
    """Return the shape of the learning rate of all trials; constant if they differ in it, as nothing can be said."""
    starts = [values["scheduler"] for values in recipe.start.values() if "scheduler" in values]
    shapes = {recipe.hyperparameters.scheduler, *starts}
    return shapes.pop() if len(shapes) == 1 and "scheduler" not in recipe.space else "constant"


def end_of(values: Mapping[str, Any], search: Search) -> float:
    """Return the fraction of the longest full trial at which a configuration of the study is complete."""
    lengths = {name: values[name] for name in LENGTHS if name in values}
    if not lengths or search.epoch is None:
        return 1.0
    proposed = search.recipe.hyperparameters.model_copy(update={**dict.fromkeys(LENGTHS), **lengths})
    return min(1.0, full_tokens(shortened(proposed, search.shortened or 1.0), search.epoch) / search.full_tokens)


def _within(value: Any, dimension: Dimension) -> Any:
    """Return the value in the dimension's range, or as its choice, which it may have left by rounding."""
    if not isinstance(dimension, Choices):
        return min(max(value, dimension.low), dimension.high)
    if not isinstance(value, float) or value in dimension.choices:
        return value
    numbers = [choice for choice in dimension.choices if isinstance(choice, int | float)]
    return min(numbers, key=lambda choice: abs(choice - value), default=value)


def _remove(adapters: Iterable[Path]) -> None:
    for adapter in adapters:
        remove_folder(adapter)
