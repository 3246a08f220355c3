"""The Optuna study: what is asked of it and what it's told, each outcome as what it is.

running, paused                  RUNNING with its intermediate values, by tokens seen; so it stays over a restart
finished, early stopped          COMPLETE with best_eval_loss
pruned                           PRUNED with its intermediate values
diverged, out of memory          PRUNED and infeasible: a violated constraint, which TPE avoids (a FAIL it forgets)
failed                           FAIL

What to try is proposed by `orchestrator.scheduling.scheduler` from what is believed of all trials, not by this study's
own sampler, which would take a paused trial for a bad one.
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
from optuna.trial import TrialState, create_trial

from search_spaces.schema import Choices, Dimension, Recipe, is_integer
from trials.records.trial_dir import EndingKind, EvalPoint

STUDY_NAME = "search"
CONSTRAINT = "can_be_trained"
NAME, _SCORE = "name", "score"
INFEASIBLE = frozenset({EndingKind.DIVERGED, EndingKind.OUT_OF_MEMORY})
_SEPARATOR = "+"
LOCK_SECONDS = 0.5
"""How long another program's lock is waited for; a browser of the study holds it for as long as it likes."""


@dataclass(frozen=True)
class Suggestion:
    """What to try next: the study's number, hyperparameters by name, and the starting point's name if it is one."""

    number: int
    values: Mapping[str, Any]
    name: str | None


Propose = Callable[[int], Mapping[str, Any]]
"""Values of a new configuration, given a seed."""


class StudyRecorder:
    """One search's study in its SQLite file; opening it again goes on where it was.

    `lost` are numbers of trials whose folders were set aside as damaged: they failed, and starting points among them
    are begun again. Where another program holds the file, opening and telling raise an error that `is_locked` knows.
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
            # It's never asked: trials come into the study with their values.
            sampler=optuna.samplers.RandomSampler(seed=recipe.search.seed),
        )
        known = self._study.get_trials(deepcopy=False)
        running = [trial for trial in known if trial.state is TrialState.RUNNING]
        self._open = {trial.number: optuna.Trial(self._study, trial._trial_id) for trial in running}
        self._reported = {trial.number: set(trial.intermediate_values) for trial in running}
        self._asked = len(known)
        self._lost = len(lost)
        begun = {trial.user_attrs.get(NAME) for trial in known if trial.number not in lost}
        self._starts = deque(name for name in recipe.start if name not in begun)
        for number in lost:
            self.lose(number)

    def ask(self, propose: Propose) -> Suggestion:
        """The next configuration: starting points first, then what is proposed. It's in the study once it is begun."""
        name = self._starts.popleft() if self._starts else None
        number = self._asked
        values = propose(self._recipe.search.seed + number) if name is None else self._recipe.start_values(name)
        self._asked += 1
        return Suggestion(number, values, name)

    def begin(self, suggestion: Suggestion) -> None:
        """Notes that a suggestion is tried: each once, in the order in which they were asked for."""
        template = create_trial(
            state=TrialState.RUNNING,
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
        """What was asked for and isn't among `numbers`, those with a folder: the search was cut off in between."""
        return [self._suggestion(trial) for number, trial in sorted(self._open.items()) if number not in numbers]

    def is_open(self, number: int) -> bool:
        """Whether the study waits for how a trial ends."""
        return number in self._open

    def report(self, number: int, point: EvalPoint) -> None:
        """An intermediate value at so many tokens seen; said twice, it counts once. A score is only noted."""
        trial = self._open[number]
        if point.tokens_seen not in self._reported[number]:
            trial.report(point.best_eval_loss, step=point.tokens_seen)
            if point.score is not None:
                trial.set_user_attr(_SCORE, point.score)
            self._reported[number].add(point.tokens_seen)

    def record_end(self, number: int, kind: EndingKind, best_eval_loss: float | None) -> None:
        """How a trial ended. Said again after an error, it's as if it were said once."""
        trial = self._open[number]
        trial.set_constraint(CONSTRAINT, 1.0 if kind in INFEASIBLE else 0.0)
        state = state_of(kind, best_eval_loss)
        self._study.tell(trial, best_eval_loss if state is TrialState.COMPLETE else None, state=state)
        del self._open[number], self._reported[number]

    def lose(self, number: int) -> None:
        """A trial can't be used any more, whatever it was."""
        if self.is_open(number):
            self.record_end(number, EndingKind.FAILED, None)

    def record_base(self, base_eval_loss: float, base_score: float | None = None) -> None:
        """Notes the base model's figures beside the trials: without hyperparameters it's no trial of the study."""
        self._study.set_user_attr("base_eval_loss", base_eval_loss)
        if base_score is not None:
            self._study.set_user_attr("base_score", base_score)

    def has_more(self, limit: int | None) -> bool:
        """Whether another configuration may be asked for: at most `limit`, without those that are lost."""
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
    """Whether an error of SQLite, SQLAlchemy or Optuna says that another program holds the database."""
    while error is not None:
        if isinstance(error, sqlite3.OperationalError):
            return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        error = getattr(error, "orig", None) or error.__cause__
    return False


def distribution(name: str, dimension: Dimension) -> BaseDistribution:
    """Optuna's distribution for one dimension of the space."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution([encode(choice, dimension) for choice in dimension.choices])
    if is_integer(name):
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def encode(value: Any, dimension: Dimension) -> Any:
    """A hyperparameter's value as the study has it: only scalars, so a list of modules becomes q_proj+v_proj."""
    if isinstance(dimension, Choices) and isinstance(value, list | tuple):
        return _SEPARATOR.join(value)
    return value


def decode(value: Any, dimension: Dimension) -> Any:
    """A value of the study as the recipe has it."""
    if isinstance(dimension, Choices):
        return next(choice for choice in dimension.choices if encode(choice, dimension) == value)
    return value


def state_of(kind: EndingKind, best_eval_loss: float | None) -> TrialState:
    """Optuna's word for how a trial ended."""
    if kind in {EndingKind.FINISHED, EndingKind.EARLY_STOPPED} and best_eval_loss is not None:
        return TrialState.COMPLETE
    if kind is EndingKind.FAILED:
        return TrialState.FAIL
    return TrialState.PRUNED


def trial_id_of(number: int) -> str:
    """The folder name of the study's trial with this number; 0000 is the base model's, which isn't in the study."""
    return f"{number + 1:04d}"


def study_number(trial_id: str) -> int:
    """The study's number of a trial."""
    return int(trial_id) - 1
