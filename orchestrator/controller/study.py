"""Optuna study of a search: records every trial, with its outcome as an Optuna trial state.

running, paused                  RUNNING with its intermediate values, by tokens seen; a restart keeps it so
finished, early stopped          COMPLETE with best_eval_loss
pruned                           PRUNED with its intermediate values
diverged, out of memory          PRUNED and infeasible: a violated constraint, which TPE avoids (a FAIL it forgets)
failed                           FAIL

`orchestrator.scheduling.scheduler` proposes the configurations, not this study's sampler, which would treat a paused
trial as a bad one.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from search_spaces.schema import Choices, Dimension, Recipe, is_integer
from trials.records.trial_dir import EvalPoint
from trials.state import TrialState

STUDY_NAME = "search"
CONSTRAINT = "can_be_trained"
NAME, _SCORE = "name", "score"
_SEPARATOR = "+"
LOCK_SECONDS = 0.5
"""Seconds to wait for another program's lock; a database browser may hold it for an unlimited time."""


@dataclass(frozen=True)
class Suggestion:
    """Configuration to try next: number in the study, hyperparameters, and the starting point's name or None."""

    number: int
    values: Mapping[str, Any]
    name: str | None


Propose = Callable[[int], Mapping[str, Any]]
"""Maps a seed to the hyperparameters of a new configuration."""


class StudyRecorder:
    """Study of one search in its SQLite file; opening it again continues the study.

    `lost` are numbers of trials whose folders were set aside as damaged. They count as failed, and starting points
    among them are asked for again. If another program holds the file, opening and recording raise an error for which
    `is_locked` is true.
    """

    def __init__(self, storage: str | BaseStorage, recipe: Recipe, lost: Set[int] = frozenset()) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._recipe = recipe
        self._space = {name: distribution(name, dimension) for name, dimension in recipe.space.items()}
        self._storage = open_storage(storage) if isinstance(storage, str) else storage
        self._study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=self._storage,
            direction="minimize",
            load_if_exists=True,
            # The sampler is never asked, because trials are added to the study with their values.
            sampler=optuna.samplers.RandomSampler(seed=recipe.search.seed),
        )
        known = self._study.get_trials(deepcopy=False)
        running = [trial for trial in known if trial.state is OptunaState.RUNNING]
        self._open = {trial.number: optuna.Trial(self._study, trial._trial_id) for trial in running}
        self._reported = {trial.number: set(trial.intermediate_values) for trial in running}
        self._asked = len(known)
        self._lost = len(lost)
        begun = {trial.user_attrs.get(NAME) for trial in known if trial.number not in lost}
        self._starts = deque(name for name in recipe.start if name not in begun)
        for number in lost:
            self.lose(number)

    def ask(self, propose: Propose) -> Suggestion:
        """Return the next configuration: starting points first, then proposals. `begin` adds it to the study."""
        name = self._starts.popleft() if self._starts else None
        number = self._asked
        values = propose(self._recipe.search.seed + number) if name is None else self._recipe.start_values(name)
        self._asked += 1
        return Suggestion(number, values, name)

    def begin(self, suggestion: Suggestion) -> None:
        """Add a suggestion to the study; to be called once for each, in the order in which `ask` returned them."""
        template = create_trial(
            state=OptunaState.RUNNING,
            params={key: encode(suggestion.values[key], self._recipe.space[key]) for key in self._space},
            distributions=self._space,
            user_attrs={} if suggestion.name is None else {NAME: suggestion.name},
        )
        trial = optuna.Trial(self._study, self._storage.create_new_trial(self._study._study_id, template))
        if trial.number != suggestion.number:
            raise ValueError(f"suggestion {suggestion.number} would be the study's trial {trial.number}")
        self._open[trial.number] = trial
        self._reported[trial.number] = set()

    def unbegun(self, numbers: Collection[int]) -> list[Suggestion]:
        """Return suggestions that are open in the study, but not among `numbers`, the trials with a folder.

        They exist if the search was cut off in between.
        """
        return [self._suggestion(trial) for number, trial in sorted(self._open.items()) if number not in numbers]

    def is_open(self, number: int) -> bool:
        """Whether a trial is in the study, and its end was not recorded yet."""
        return number in self._open

    def report(self, number: int, point: EvalPoint) -> None:
        """Record an evaluation as an intermediate value, once per token count; a score becomes a user attribute."""
        trial = self._open[number]
        if point.tokens_seen not in self._reported[number]:
            trial.report(point.best_eval_loss, step=point.tokens_seen)
            if point.score is not None:
                trial.set_user_attr(_SCORE, point.score)
            self._reported[number].add(point.tokens_seen)

    def record_end(self, number: int, kind: TrialState, best_eval_loss: float | None) -> None:
        """Record how a trial ended; may be repeated after an error."""
        trial = self._open[number]
        trial.set_constraint(CONSTRAINT, 1.0 if kind.is_infeasible else 0.0)
        state = state_of(kind, best_eval_loss)
        self._study.tell(trial, best_eval_loss if state is OptunaState.COMPLETE else None, state=state)
        del self._open[number], self._reported[number]

    def lose(self, number: int) -> None:
        """Record a trial that cannot be used any more as failed, if it is open."""
        if self.is_open(number):
            self.record_end(number, TrialState.FAILED, None)

    def record_base(self, base_eval_loss: float, base_score: float | None = None) -> None:
        """Record the base model's loss and score as user attributes: without hyperparameters it is no trial."""
        self._study.set_user_attr("base_eval_loss", base_eval_loss)
        if base_score is not None:
            self._study.set_user_attr("base_score", base_score)

    def has_more(self, limit: int | None) -> bool:
        """Whether fewer than `limit` configurations were asked for, not counting lost ones; None: no limit."""
        return limit is None or self._asked - self._lost < limit

    def _suggestion(self, trial: optuna.Trial) -> Suggestion:
        name = trial.user_attrs.get(NAME)
        values = {key: decode(value, self._recipe.space[key]) for key, value in trial.params.items()}
        if name is not None:
            values = {**self._recipe.start_values(name), **values}
        return Suggestion(trial.number, values, name)


def open_storage(url: str) -> RDBStorage:
    """Open a study's storage, which waits for another program's lock no longer than `LOCK_SECONDS`."""
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})


def is_locked(error: BaseException | None) -> bool:
    """Whether an error of SQLite, SQLAlchemy or Optuna means that another program holds the database."""
    while error is not None:
        if isinstance(error, sqlite3.OperationalError):
            return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        error = getattr(error, "orig", None) or error.__cause__
    return False


def distribution(name: str, dimension: Dimension) -> BaseDistribution:
    """Return Optuna's distribution for one dimension of the space."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution([encode(choice, dimension) for choice in dimension.choices])
    if is_integer(name):
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def encode(value: Any, dimension: Dimension) -> Any:
    """Return a hyperparameter's value for the study: only scalars, so a list of modules becomes q_proj+v_proj."""
    if isinstance(dimension, Choices) and isinstance(value, list | tuple):
        return _SEPARATOR.join(value)
    return value


def decode(value: Any, dimension: Dimension) -> Any:
    """Return a value of the study as the recipe has it."""
    if isinstance(dimension, Choices):
        return next(choice for choice in dimension.choices if encode(choice, dimension) == value)
    return value


def state_of(kind: TrialState, best_eval_loss: float | None) -> OptunaState:
    """Return Optuna's trial state for how a trial ended."""
    if kind.is_complete and best_eval_loss is not None:
        return OptunaState.COMPLETE
    if kind is TrialState.FAILED:
        return OptunaState.FAIL
    return OptunaState.PRUNED


def trial_id_of(number: int) -> str:
    """Return the folder name of a study number; 0000 is the base model's, which is not in the study."""
    return f"{number + 1:04d}"


def study_number(trial_id: str) -> int:
    """Return the study number of a trial id."""
    return int(trial_id) - 1
