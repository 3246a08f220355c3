"""Configurations of a search's new trials, and their ids; both continue from the trials' folders.

A search compares configurations by trials that are short, so that enough of them fit. Its winner would be given away
too early: a loss falls with the logarithm of the length, and in most searches that is worth more than the next ten
configurations. So a share of the time at the end (`search.final_share`) is kept for a trial from the beginning, with a
schedule that ends when the time does: the final trial. Every worker trains one, of the best configurations in turn,
alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.controller.budget import SearchBudget
from orchestrator.controller.trials import Trial, TrialTable
from orchestrator.planning.trial_length import MOST_TIMES, SAFE_SHARE, TWO_FROM, shortened_trial
from orchestrator.sampling.distributions import decode_all, encode_all
from orchestrator.surrogate.curve_model import Forecast
from search_spaces.schema import Recipe
from trials.config import LENGTHS, TrialConfig
from trials.records.trial_dir import Origin, TrialRecord

_LEAST_TIMES = 1.2
"""A final trial is at least so many times as long as the trial whose configuration it has."""
_MOST_AGAIN = 2.0
"""A further final trial of a configuration is at most so many times as long as the one before."""
_NO_TIME = 1.0
"""Seconds that are too few for any other trial."""
_MOST_FORECAST = 50


class Proposals(Protocol):
    """What proposes configurations, as values of the study's distributions."""

    def begin(self, number: int, values: Mapping[str, Any]) -> None:
        """Record the configuration of the trial of this number, which nobody proposed."""

    def propose(self, number: int) -> Mapping[str, Any] | None:
        """Return the configuration of the trial of this number; None: it is not ready yet."""


@dataclass(frozen=True)
class NewTrial:
    """Configuration to try next: trial id, hyperparameters, and the starting point's name or None."""

    trial_id: str
    values: Mapping[str, Any]
    name: str | None


class NewTrials:
    """Gives out new configurations: starting points first, then proposals, up to the recipe's number of trials.

    `records` are the usable trials on disk. `lost` are the ids of trials that were set aside: no new trial gets one,
    they do not count as trials, and starting points among them are given out again.
    """

    def __init__(self, recipe: Recipe, records: Sequence[TrialRecord], lost: Collection[str] = ()) -> None:
        self._recipe = recipe
        begun = [record for record in records if record.origin is not Origin.BASE]
        self._last = max((int(each) for each in (*lost, *(record.id for record in begun))), default=0)
        self._count = sum(record.origin is not Origin.FINAL for record in begun)
        names = {record.name for record in begun if record.origin is Origin.START}
        self._starts = deque(name for name in recipe.start if name not in names)

    @property
    def has_more(self) -> bool:
        """Whether fewer configurations were given out than the recipe's number of trials; it may have none."""
        limit = self._recipe.search.trials
        return limit is None or self._count < limit

    def next_id(self) -> str:
        """Return the id of a trial that has its configuration from elsewhere; it doesn't count as one of the trials."""
        self._last += 1
        return f"{self._last:04d}"

    def next(self, proposals: Proposals) -> NewTrial | None:
        """Return the next configuration; its trial's folder has to be made before another controller is.

        None: it is not ready yet, and should be asked for again.
        """
        number, space = self._last + 1, self._recipe.space
        name = self._starts[0] if self._starts else None
        if name is not None:
            values = self._recipe.start_values(name)
            proposals.begin(number, encode_all(values, space))
            self._starts.popleft()
        else:
            proposed = proposals.propose(number)
            if proposed is None:
                return None
            values = decode_all(proposed, space)
        self._last = number
        self._count += 1
        return NewTrial(f"{number:04d}", values, name)


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
        return self._budget.final_seconds > 0 and (self._is_early or self._budget.search_seconds_left < _NO_TIME)

    def begin_early(self) -> None:
        """Let final trials begin although there is time: nothing else is left to be done."""
        self._is_early = True

    def cut_off(self) -> Trial | None:
        """Return a final trial that was cut off and can go on."""
        return next((each for each in self._begun() if each.ending is None and not each.is_running), None)

    def next(self) -> FinalTrial | None:
        """Return the next one to begin; None: every worker has one, or there is no time for a longer trial.

        If the best final trial was still getting better at its end, it is trained anew for twice as long. Else the best
        configuration that has had no final trial is the next.
        """
        begun = self._begun()
        if sum(each.is_running for each in begun) >= self._workers:
            return None
        improving = _still_improving(begun)
        if improving is not None:
            again = self._longer(improving, _MOST_AGAIN * self._budget.search.tokens_of(improving.config))
            if again is not None:
                return again
        done = [_without_length(each.config) for each in begun]
        new = (trial for trial in self._best_first() if _without_length(trial.config) not in done)
        trial = next(new, None)
        return None if trial is None else self._longer(trial, self._first_length(trial))

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

    def _first_length(self, trial: Trial) -> float:
        """Return the most tokens of a configuration's first final trial.

        Where the time is enough for one after it that is twice as long, the first is as short as that leaves.
        """
        search = self._budget.search
        recipes = search.tokens_of(trial.config) / (search.shortened or 1.0)
        fit = SAFE_SHARE * search.final_seconds / (self._speed(trial, recipes)[0] * recipes)
        return recipes * (MOST_TIMES if fit < TWO_FROM else min(MOST_TIMES, fit / (1 + _MOST_AGAIN)))

    def _longer(self, trial: Trial, most: float) -> FinalTrial | None:
        """Return a trial like this one of at most so many tokens; None: there is no time for one that is longer."""
        budget, own = self._budget, self._budget.search.tokens_of(trial.config)
        spent = sum(each.points[-1].seconds for each in self._begun() if each.points) / self._workers
        left = min(budget.seconds_left, budget.search.final_seconds - spent) - budget.throughput.start_seconds
        each, evaluations = self._speed(trial, own)
        times = min(most, max(0.0, SAFE_SHARE * left - evaluations) / each) / own
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


def _still_improving(begun: list[Trial]) -> Trial | None:
    """Return the best final trial, if its loss was lowest at its end and there is no longer one like it."""
    ended = [each for each in begun if each.state.is_complete and each.best_eval_loss is not None]
    best = min(ended, key=lambda each: each.best_eval_loss or 0.0, default=None)
    if best is None or best.points[-1].eval_loss > (best.best_eval_loss or 0.0):
        return None
    later = begun[begun.index(best) + 1 :]
    return None if any(_without_length(each.config) == _without_length(best.config) for each in later) else best


def _without_length(config: TrialConfig) -> dict[str, Any]:
    values = config.hyperparameters.model_dump()
    return {name: value for name, value in values.items() if name not in LENGTHS}
