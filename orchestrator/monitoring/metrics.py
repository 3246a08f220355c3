"""Metrics of a search for Prometheus. Imports no Ray; `orchestrator.monitoring.prometheus` passes them to Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.controller.events import Event, TrialEnded, TrialEvaluated, TrialPaused, TrialStarted
from orchestrator.monitoring.progress import Progress, TrialProgress
from orchestrator.state.run_dir import RunDir
from orchestrator.state.rungs import rung_tokens
from orchestrator.state.search import Search
from trials.records.memory_report import read_memory_report
from trials.records.trial_dir import EvalPoint, Origin
from trials.state import TrialState

_LINGER_SECONDS = 120.0
"""A trial that is not running keeps its metrics for so long, so that the last values are scraped at least once."""
_TRAINED = (Origin.START, Origin.PROPOSED, Origin.FINAL)


@dataclass(frozen=True)
class Metric:
    """Definition of a metric of a search or of its trials: a counter if `is_sum`, else a gauge."""

    name: str
    description: str
    tags: tuple[str, ...] = ("search",)
    is_sum: bool = False


_OF_A_TRIAL = ("search", "trial")
EVAL_LOSS = Metric("qlora_trial_eval_loss", "Eval loss, nats per completion token", _OF_A_TRIAL)
BEST_EVAL_LOSS = Metric("qlora_trial_best_eval_loss", "Lowest eval loss so far, nats per token", _OF_A_TRIAL)
SPEED = Metric("qlora_trial_tokens_per_second", "Training tokens a second; 0 while it doesn't run", _OF_A_TRIAL)
MEMORY = Metric("qlora_trial_memory_bytes", "Most GPU memory in use, others in its process included", _OF_A_TRIAL)
FRACTION = Metric("qlora_trial_fraction_trained", "Tokens seen, of those of a full trial", _OF_A_TRIAL)
RUNG = Metric("qlora_trial_rung", "Comparison points that it has reached", _OF_A_TRIAL)
TRIALS = Metric("qlora_search_trials", "Trials by state", ("search", "state"))
BEST = Metric("qlora_search_best_eval_loss", "Lowest eval loss of all trials, nats per token")
BASE = Metric("qlora_search_base_eval_loss", "Eval loss of the untrained base model, nats per token")
SECONDS_LEFT = Metric("qlora_search_seconds_left", "Until the export is due; negative after that")
TOKENS = Metric("qlora_search_trained_tokens", "Tokens that trials were trained on in this session", is_sum=True)
METRICS = (EVAL_LOSS, BEST_EVAL_LOSS, SPEED, MEMORY, FRACTION, RUNG, TRIALS, BEST, BASE, SECONDS_LEFT, TOKENS)


@dataclass(frozen=True)
class Sample:
    """Present value of a metric. `tags` lacks the tag `search`, which the exporter adds."""

    metric: Metric
    value: float
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class _TrialGauges:
    """Metric values of one trial, as of its last evaluation."""

    tokens_seen: int
    values: dict[Metric, float] = field(default_factory=dict)
    left: datetime | None = None
    """Time at which it paused or ended; None while it runs."""


class SearchMetrics:
    """Metrics of a search in one session; trials of earlier sessions count by their records in the run folder."""

    def __init__(self, progress: Progress, run: RunDir, search: Search, now: Callable[[], datetime]) -> None:
        self._progress, self._run, self._search, self._now = progress, run, search, now
        before = [record for record in run.records() if record.origin in _TRAINED]
        losses = [record.best_eval_loss for record in before if record.best_eval_loss is not None]
        self._states = {record.id: record.state for record in before}
        self._best_before = min(losses, default=None)
        self._trials: dict[str, _TrialGauges] = {}
        self._trained_tokens = 0
        self._of_search = self._of_all_trials()

    def apply(self, event: Event) -> None:
        """Apply an event; the `Progress` must have applied it before."""
        if isinstance(event, TrialStarted):
            self._trials[event.trial_id] = _TrialGauges(event.tokens_seen)
        elif isinstance(event, TrialEvaluated):
            self._evaluated(self._progress.rows[event.trial_id], event.point)
        elif isinstance(event, TrialPaused | TrialEnded) and event.trial_id in self._trials:
            self._leave(self._trials[event.trial_id])
        self._of_search = self._of_all_trials()

    def current(self) -> list[Sample]:
        """Return all samples as of now."""
        now = self._now()
        shown = {name: trial for name, trial in self._trials.items() if not _is_gone(trial, now)}
        of_trials = [
            Sample(metric, value, {"trial": trial_id})
            for trial_id, trial in shown.items()
            for metric, value in trial.values.items()
        ]
        left = Sample(SECONDS_LEFT, self._search.deadline.seconds_left(now))
        return [left, Sample(TOKENS, self._trained_tokens), *self._of_search, *of_trials]

    def _evaluated(self, row: TrialProgress, point: EvalPoint) -> None:
        trial, settings = self._trials[row.trial_id], self._search.recipe.search
        rungs = rung_tokens(row.full_tokens, settings.reduction_factor, settings.rungs)
        self._trained_tokens += max(0, point.tokens_seen - trial.tokens_seen)
        trial.tokens_seen = point.tokens_seen
        trial.values = {
            EVAL_LOSS: point.eval_loss,
            BEST_EVAL_LOSS: point.best_eval_loss,
            SPEED: point.tokens_per_second or 0.0,
            FRACTION: point.tokens_seen / row.full_tokens,
            RUNG: sum(point.tokens_seen >= tokens for tokens in rungs),
        }
        memory = read_memory_report(self._run.trial(row.trial_id))
        if memory is not None and memory.peak_bytes is not None:
            trial.values[MEMORY] = memory.peak_bytes

    def _leave(self, trial: _TrialGauges) -> None:
        if trial.left is None:
            trial.left = self._now()
            trial.values = {**trial.values, SPEED: 0.0}

    def _of_all_trials(self) -> list[Sample]:
        # All states, also those with no trial: a gauge that isn't set again keeps its old value.
        counts = Counter({**self._states, **self._progress.states()}.values())
        samples = [Sample(TRIALS, counts[state], {"state": state.value}) for state in TrialState]
        best = self._progress.best
        losses = [self._best_before, None if best is None or best.point is None else best.point.best_eval_loss]
        known = [loss for loss in losses if loss is not None]
        if known:
            samples.append(Sample(BEST, min(known)))
        if self._progress.base_eval_loss is not None:
            samples.append(Sample(BASE, self._progress.base_eval_loss))
        return samples


def _is_gone(trial: _TrialGauges, now: datetime) -> bool:
    return trial.left is not None and (now - trial.left).total_seconds() > _LINGER_SECONDS
