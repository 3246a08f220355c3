"""Configurations of a search's new trials, and their ids; both continue from the trials' folders.

A search compares configurations by trials that are short, so that enough of them fit. Its winner would be given away
too early: a loss falls with the logarithm of the length, and in most searches that is worth more than the next ten
configurations. So a share of the time at the end (`search.final_share`) is kept for final trials: the best
configuration is trained from its beginning until the time is over. Every worker trains one, alone; with a second one
the best configuration is trained at half the rate as well.

For how long the loss falls cannot be known beforehand. So a final trial has a learning rate that falls whatever its
length is, and the average of its adapter over the last fifth is what is evaluated and kept: it is as good as a cosine
planned for the right length, at any length (docs/scheduling.md). Its peak is lower than in the search, because the best
rate falls with the length. It ends when its loss has stopped falling; then the next one has the time that is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.controller.budget import SearchBudget
from orchestrator.controller.trials import Trial, TrialTable
from orchestrator.planning.trial_length import shortened_trial
from orchestrator.sampling.distributions import decode_all, encode_all
from orchestrator.surrogate.curve_model import Forecast
from search_spaces.schema import Recipe
from trials.config import Hyperparameters, TrialConfig
from trials.records.trial_dir import Origin, TrialRecord
from trials.schedule import full_length

_LEAST_TIMES = 1.2
"""A final trial is at least so many times as long as the trial whose configuration it has."""
_SPARE = 1.3
"""A final trial is planned for so many times the tokens that are expected to fit: it ends when the time is over."""
_SCHEDULE = {"scheduler": "inverse_sqrt", "adapter_average": 0.2}
"""Hyperparameters of every final trial, in place of those that the search compares with."""
_STEADY_SHARE = 0.25
"""Share of a final trial's steps in which its rate falls to 71 % of its peak; at least as many as in the search.

With 100 steps whatever the length, the rate of a trial of ten thousand is a tenth of its peak for most of it: such a
one needed three times the tokens of a cosine (SmolLM2-135M on e-SNLI, four rows a step).
"""
_RATE_EXPONENT = -0.32
"""Power of the length with which the best learning rate goes (arXiv 2409.19913)."""
_RATES = {" for longer": 1.0, " for longer, at half the rate": 0.5}
"""Final trials of one configuration, by what their names have after its trial's id, and how their rates differ."""
_EVALUATED_SHARE = 0.1
"""Largest share of a final trial's time that its evaluations take, unless the fewest take more."""
_FEWEST_EVALUATIONS, _MOST_EVALUATIONS = 5, 40
_PATIENCE = 1.5
"""A final trial ends when it is so many times as long as when its loss was lowest."""
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
    """A final trial to begin. Its name says whose configuration it has, also after a restart."""

    config: TrialConfig
    name: str


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

        It has the best configuration that has had none, or only one: the best rate of a longer trial isn't known.
        """
        begun = self._begun()
        if sum(each.is_running for each in begun) >= self._workers:
            return None
        done = {each.name for each in begun}
        pairs = ((trial, name) for trial in self._best_first() for name in _RATES if trial.trial_id + name not in done)
        trial, name = next(pairs, (None, ""))
        return None if trial is None else self._longer(trial, name)

    def is_exhausted(self, trial: Trial) -> bool:
        """Return whether the loss of a final trial has stopped falling, so that more training is of no use.

        Early losses say nothing of that: no trial is before it is as long as the search's trials.
        """
        best = min(trial.points, key=lambda point: point.eval_loss, default=None)
        if best is None:
            return False
        is_long = trial.tokens_seen >= max(_PATIENCE * best.tokens_seen, self._budget.search.full_tokens)
        return is_long and sum(point.tokens_seen > best.tokens_seen for point in trial.points) > 1

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

    def _longer(self, trial: Trial, name: str) -> FinalTrial | None:
        """Return a trial like this one for the time that is left; None: it would be hardly longer."""
        budget, own = self._budget, self._budget.search.tokens_of(trial.config)
        spent = sum(each.points[-1].seconds for each in self._begun() if each.points) / self._workers
        left = min(budget.seconds_left, budget.search.final_seconds - spent) - budget.throughput.start_seconds
        left = max(0.0, left)
        each, evaluation = self._speed(trial, own)
        count = int(_EVALUATED_SHARE * left / evaluation) if evaluation > 0 else _MOST_EVALUATIONS
        count = min(max(count, _FEWEST_EVALUATIONS), _MOST_EVALUATIONS)
        times = (left - count * evaluation) / each / own
        if times < _LEAST_TIMES:
            return None
        config = shortened_trial(trial.config, _SPARE * times)
        rate = _RATES[name] * trial.config.hyperparameters.learning_rate * times**_RATE_EXPONENT
        schedule = {
            **_SCHEDULE,
            "learning_rate": rate,
            "inverse_sqrt_steps": self._steady_steps(config.hyperparameters),
        }
        changes = {
            "hyperparameters": config.hyperparameters.model_copy(update=schedule),
            "evaluation": config.evaluation.model_copy(
                update={"evaluations": round(_SPARE * count), "every_rows": None}
            ),
        }
        return FinalTrial(config.model_copy(update=changes), trial.trial_id + name)

    def _steady_steps(self, hyperparameters: Hyperparameters) -> int:
        """Return the `inverse_sqrt_steps` of a final trial that is planned with these hyperparameters."""
        epoch, fewest = self._budget.search.epoch, hyperparameters.inverse_sqrt_steps
        if epoch is None:  # a run folder of a version that didn't count rows
            return fewest
        return max(fewest, int(_STEADY_SHARE * full_length(hyperparameters, epoch).steps / _SPARE))

    def _speed(self, trial: Trial, tokens: float) -> tuple[float, float]:
        """Return the seconds that a final trial takes for a token and for an evaluation, by one of so many `tokens`.

        The final trial is alone on its worker; the probe was, too, and trials beside each other are no faster than
        alone.
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
        evaluations = max(1.0, len(trial.points) * tokens / max(1, last.tokens_seen))
        return training * own, (1 - training) * own * tokens / evaluations
