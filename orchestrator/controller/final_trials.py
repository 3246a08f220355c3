"""Final trials: at the end of a search its best configuration is trained anew, for as long as the time allows.

A search compares configurations by trials that are short, so that enough of them fit. Its winner would be given away
too early: a loss falls with the logarithm of the length, and in most searches that is worth more than the next ten
configurations. So a share of the time at the end (`search.final_share`) is kept for a trial from the beginning, with a
schedule that ends when the time does. Every worker trains one, of the best configurations in turn, alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.controller.budget import SearchBudget
from orchestrator.controller.trials import Trial, TrialTable
from orchestrator.planning.trial_length import MOST_TIMES, SAFE_SHARE, shortened_trial
from orchestrator.surrogate.curve_model import Forecast
from trials.config import LENGTHS, TrialConfig
from trials.records.trial_dir import Origin
from trials.schedule import full_tokens

_LEAST_TIMES = 1.2
"""A final trial is at least so many times as long as the trial whose configuration it has."""
_MOST_FORECAST = 50


@dataclass(frozen=True)
class FinalTrial:
    """A final trial to begin: its configuration, and the trial that it has it from."""

    config: TrialConfig
    source: str


class FinalTrials:
    """Chooses the final trials of one search; all of its state is in the budget and in the table of trials."""

    def __init__(
        self, budget: SearchBudget, table: TrialTable, forecast: Callable[[str], Forecast | None], workers: int
    ) -> None:
        self._budget, self._table, self._forecast, self._workers = budget, table, forecast, workers
        self._is_early = False

    @property
    def are_due(self) -> bool:
        """Whether only final trials run from now on."""
        return self._budget.search.final_seconds > 0 and (self._is_early or self._budget.search_seconds_left <= 0)

    def begin_early(self) -> None:
        """Let final trials begin although there is time: nothing else is left to be done."""
        self._is_early = True

    def cut_off(self) -> Trial | None:
        """Return a final trial that was cut off and can go on."""
        return next((each for each in self._begun() if each.ending is None and not each.is_running), None)

    def next(self) -> FinalTrial | None:
        """Return the next one to begin; None: every worker has or had one, or there is no time for a longer trial.

        Where one ended early, as diverged, the next best configuration takes its place.
        """
        begun = self._begun()
        if sum(each.is_running or each.state.is_complete for each in begun) >= self._workers:
            return None
        done = [_without_length(each.config) for each in begun]
        for trial in self._best_first():
            if _without_length(trial.config) not in done:
                return self._longer(trial)
        return None

    def _begun(self) -> list[Trial]:
        return [trial for trial in self._table if trial.origin is Origin.FINAL]

    def _best_first(self) -> list[Trial]:
        """Return the trials that may be trained for longer, by the loss that is expected at their end."""
        known = [trial for trial in self._table if trial.origin is not Origin.FINAL and trial.points]
        known = [trial for trial in known if not trial.state.is_infeasible]
        known = sorted(known, key=lambda each: each.best_eval_loss or 0.0)[:_MOST_FORECAST]
        expected = {each.trial_id: self._forecast(each.trial_id) for each in known if not each.state.is_complete}
        means = {name: forecast.mean for name, forecast in expected.items() if forecast is not None}
        return sorted(known, key=lambda each: means.get(each.trial_id, each.best_eval_loss or 0.0))

    def _longer(self, trial: Trial) -> FinalTrial | None:
        search, hyperparameters = self._budget.search, trial.config.hyperparameters
        own = full_tokens(hyperparameters, search.epoch) if search.epoch else search.full_tokens
        left = self._budget.seconds_left - self._budget.throughput.start_seconds
        each, evaluations = self._speed(trial, own)
        recipes = own / (search.shortened or 1.0)
        times = min(MOST_TIMES * recipes, max(0.0, SAFE_SHARE * left - evaluations) / each) / own
        if times < _LEAST_TIMES:
            return None
        return FinalTrial(shortened_trial(trial.config, times), trial.trial_id)

    def _speed(self, trial: Trial, tokens: float) -> tuple[float, float]:
        """Return the seconds per token of a longer trial, and those that its evaluations take in all.

        There are as many as in the trial of `tokens`, so each token has fewer of them. The longer trial is alone on its
        worker; the probe was, too, and trials beside each other are no faster than alone.
        """
        throughput, probe = self._budget.throughput, self._budget.search.alone_seconds_per_token
        own, mean, last = throughput.seconds_per_token(trial.config), throughput.seconds_per_token(), trial.points[-1]
        assert own is not None and mean is not None  # noqa: PT018  # the trial was measured
        training = 1.0
        if last.tokens_per_second and last.seconds > 0:
            training = min(1.0, last.tokens_seen / last.tokens_per_second / last.seconds)
        placement = self._budget.search.placement
        if probe is not None and placement is not None and placement.slots_per_worker > 1:
            own = min(own, probe * own / mean)
        return training * own, (1 - training) * own * tokens


def _without_length(config: TrialConfig) -> dict[str, Any]:
    values = config.hyperparameters.model_dump()
    return {name: value for name, value in values.items() if name not in LENGTHS}
