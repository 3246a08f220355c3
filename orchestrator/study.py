"""The Optuna study: what is asked of it and what it's told, each outcome as what it is.

finished, early stopped          COMPLETE with best_eval_loss
pruned                           PRUNED with its intermediate values, by tokens seen
diverged, out of memory          PRUNED and infeasible: a violated constraint, which TPE avoids (a FAIL it forgets)
failed, cut off                  FAIL; a cut-off configuration is tried again on resume
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from search_spaces.schema import Choices, Dimension, Recipe, is_integer
from trials.records import EndingKind, EvalPoint

STUDY_NAME = "search"
CONSTRAINT = "can_be_trained"
_NAME, _RETRY, _CUT_OFF, _SCORE = "name", "retry_of", "cut_off", "score"
_INFEASIBLE = {EndingKind.DIVERGED, EndingKind.OUT_OF_MEMORY}
_SEPARATOR = "+"


@dataclass(frozen=True)
class Suggestion:
    """What to try next: the study's number, hyperparameters by name, and the starting point's name if it is one."""

    number: int
    values: Mapping[str, Any]
    name: str | None


class Study:
    """One search's study in its SQLite file; opening it again goes on where it was."""

    def __init__(self, url: str, recipe: Recipe) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._recipe = recipe
        self._space = {name: distribution(name, dimension) for name, dimension in recipe.space.items()}
        storage = optuna.storages.RDBStorage(url)
        self._study = optuna.create_study(
            study_name=STUDY_NAME, storage=storage, direction="minimize", load_if_exists=True
        )
        known = self._study.get_trials(deepcopy=False)
        self._study.sampler = optuna.samplers.TPESampler(
            # A resumed search must not draw the same random configurations again.
            seed=recipe.search.seed + len(known),
            n_startup_trials=recipe.search.startup_trials,
            multivariate=True,
            constant_liar=True,
        )
        self._open: dict[int, optuna.Trial] = {}
        self._reported: defaultdict[int, set[int]] = defaultdict(set)
        if known:
            self._retry_cut_off()
        else:
            self._enqueue_starting_points()

    def ask(self) -> Suggestion:
        """The next configuration: starting points and retries first, then what the sampler proposes."""
        trial = self._study.ask(self._space)
        self._open[trial.number] = trial
        name = trial.user_attrs.get(_NAME)
        values = {key: _decode(value, self._recipe.space[key]) for key, value in trial.params.items()}
        if name is not None:
            values = {**self._recipe.start_values(name), **values}
        return Suggestion(trial.number, values, name)

    def report(self, number: int, point: EvalPoint) -> None:
        """An intermediate value at so many tokens seen; said twice, it counts once. A score is only noted."""
        trial = self._open[number]
        if point.tokens_seen not in self._reported[number]:
            trial.report(point.best_eval_loss, step=point.tokens_seen)
            if point.score is not None:
                trial.set_user_attr(_SCORE, point.score)
            self._reported[number].add(point.tokens_seen)

    def tell(self, number: int, kind: EndingKind | None, best_eval_loss: float | None) -> None:
        """How a trial ended; `kind` None: it was cut off and has to be tried again."""
        trial = self._open.pop(number)
        if kind in _INFEASIBLE:
            trial.set_constraint(CONSTRAINT, 1.0)
        elif kind is None:
            trial.set_user_attr(_CUT_OFF, True)
        else:
            trial.set_constraint(CONSTRAINT, 0.0)
        state = _state(kind, best_eval_loss)
        self._study.tell(trial, best_eval_loss if state is TrialState.COMPLETE else None, state=state)

    def record_base(self, base_eval_loss: float, base_score: float | None = None) -> None:
        """Notes the base model's figures beside the trials: without hyperparameters it's no trial of the study."""
        self._study.set_user_attr("base_eval_loss", base_eval_loss)
        if base_score is not None:
            self._study.set_user_attr("base_score", base_score)

    def has_more(self, limit: int | None) -> bool:
        """Whether another configuration may be asked for: at most `limit` in all sessions of this search.

        What was cut off and is tried again is one of these already, and doesn't count twice.
        """
        trials = self._study.get_trials(deepcopy=False)
        is_queued = {trial.number: trial.state is TrialState.WAITING for trial in trials}
        is_retry = {trial.number: _RETRY in trial.user_attrs for trial in trials}
        asked = sum(not is_queued[number] and not is_retry[number] for number in is_queued)
        return limit is None or asked < limit or any(is_queued[n] and is_retry[n] for n in is_queued)

    def _enqueue_starting_points(self) -> None:
        for name in self._recipe.start:
            values = self._recipe.start_values(name)
            params = {key: _encode(values[key], self._recipe.space[key]) for key in self._space}
            self._study.enqueue_trial(params, user_attrs={_NAME: name})

    def _retry_cut_off(self) -> None:
        """Trials that were stopped with the search, or whose process died, are asked for again, once each."""
        trials = self._study.get_trials(deepcopy=False)
        retried = {trial.user_attrs.get(_RETRY) for trial in trials}
        for trial in trials:
            was_running = trial.state is TrialState.RUNNING
            if was_running:
                self._study.tell(trial.number, state=TrialState.FAIL)
            if (was_running or _CUT_OFF in trial.user_attrs) and trial.number not in retried:
                self._study.enqueue_trial(trial.params, user_attrs=_kept_attributes(trial))


def distribution(name: str, dimension: Dimension) -> BaseDistribution:
    """Optuna's distribution for one dimension of the space."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution([_encode(choice, dimension) for choice in dimension.choices])
    if is_integer(name):
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _encode(value: Any, dimension: Dimension) -> Any:
    """Optuna keeps only scalars: a list of modules becomes q_proj+v_proj."""
    if isinstance(dimension, Choices) and isinstance(value, list | tuple):
        return _SEPARATOR.join(value)
    return value


def _decode(value: Any, dimension: Dimension) -> Any:
    if isinstance(dimension, Choices):
        return next(choice for choice in dimension.choices if _encode(choice, dimension) == value)
    return value


def _state(kind: EndingKind | None, best_eval_loss: float | None) -> TrialState:
    if kind in {EndingKind.FINISHED, EndingKind.EARLY_STOPPED} and best_eval_loss is not None:
        return TrialState.COMPLETE
    if kind is None or kind is EndingKind.FAILED:
        return TrialState.FAIL
    return TrialState.PRUNED


def _kept_attributes(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    kept = {key: value for key, value in trial.user_attrs.items() if key == _NAME}
    return {**kept, _RETRY: trial.number}
