"""Optuna study of a search in RUN/study.db, derived from the trials' folders: for people, dashboards and samplers.

A trial's number in the study is its id; number 0 is the base model. The folders are the source of truth: the study is
written and never asked. It is behind the folders by some trials while a search runs.

running, paused                  RUNNING with its intermediate values, by tokens seen; a restart keeps it so
finished, early stopped          COMPLETE with best_eval_loss
pruned                           PRUNED with its intermediate values
diverged, out of memory          PRUNED and infeasible: a violated constraint, which TPE avoids (a FAIL it forgets)
failed, lost, set aside          FAIL
the base model                   FAIL, because it has no hyperparameters, and samplers skip such trials
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from orchestrator.controller.trials import proposed_values
from orchestrator.sampling.distributions import distributions
from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir
from orchestrator.state.trial_folders import ids_set_aside
from search_spaces.schema import Recipe
from trials.errors import RunFolderError
from trials.records.trial_dir import Origin, TrialRecord, read_trial
from trials.state import TrialState

STUDY_NAME = "search"
CONSTRAINT = "can_be_trained"
_NAME, _SCORE = "name", "score"
_BASE = int(BASE_TRIAL_ID)
_WITHOUT_A_FOLDER = create_trial(state=OptunaState.FAIL)
_LOCK_SECONDS = 0.5
"""Seconds to wait for another program's lock; a database browser may hold it for an unlimited time."""
_BETWEEN_TRIES_SECONDS = 10.0
_MOST_SET_ASIDE = 1000

logger = logging.getLogger(__name__)


class StudyRecorder:
    """Keeps study.db equal to the trials' folders. For one thread at a time.

    A file that is damaged, or that the folders can't be appended to, is set aside and made anew. While another program,
    such as a database browser, locks the file, trials wait in a queue. `say` shows a sentence to people.
    """

    def __init__(self, run: RunDir, recipe: Recipe, records: Sequence[TrialRecord], say: Callable[[str], None]) -> None:
        self._run, self._recipe, self._say = run, recipe, say
        self._study: _StudyFile | None = None
        """None: study.db has been locked until now."""
        self._changed: set[str] = set()
        self._shortened: float | None = None
        self._next_try = 0.0
        self._has_said = False
        with self._unless_locked():
            self._study = self._opened(records)

    def write_later(self, trial_id: str) -> None:
        """Queue a trial or the base model, whose folder has changed, for the next `flush`."""
        self._changed.add(trial_id)

    def flush(self, *, at_once: bool = False) -> None:
        """Write the queued trials, unless the file was locked some seconds ago and `at_once` is False.

        If the file is locked it takes about `_LOCK_SECONDS`.
        """
        if self._next_try > time.monotonic() and not at_once:
            return
        with self._unless_locked():
            self._study = self._study or self._opened(self._run.records())
            for trial_id in sorted(self._changed, key=int):
                self._write(self._study, int(trial_id), self._record(trial_id))
                self._changed.remove(trial_id)

    @contextmanager
    def _unless_locked(self) -> Iterator[None]:
        """Set the time of the next attempt, if another program locks the file."""
        try:
            yield
        except Exception as error:
            if not is_locked(error):
                raise
            self._next_try = time.monotonic() + _BETWEEN_TRIES_SECONDS
            if not self._has_said:
                self._has_said = True
                self._say(
                    "another program holds study.db, such as a database browser: the search goes on, and tells the "
                    "study what it has missed once the file is free"
                )

    def _opened(self, records: Sequence[TrialRecord]) -> _StudyFile:
        """Return the study with all trials in it; one that they can't be appended to is made anew."""
        by_number = {int(record.id): record for record in records}
        last = max((*by_number, *map(int, ids_set_aside(self._run.path, records))), default=0)
        found = read_study(self._run)
        derived = [self._derived(number, by_number.get(number)) for number in range(last + 1)]
        if found is None or not _can_become(found, derived):
            self._tell_why(_set_aside(self._run), is_damaged=found is None, is_begun=last > 0)
            found = []
        study = _StudyFile(self._run, found)
        for number in range(last + 1):
            self._write(study, number, by_number.get(number))
        return study

    def _tell_why(self, aside: Path | None, *, is_damaged: bool, is_begun: bool) -> None:
        """Say why study.db is made anew. `aside` is where it is now; None: it was gone."""
        if is_damaged and (aside is not None or is_begun):
            what = f"was damaged (it's {aside} now)" if aside else "was gone"
            self._say(f"study.db {what}; it's made anew from the trials' folders")
        elif aside is not None:
            # A study of an earlier version is such a case: it had no trial 0, for the base model.
            logger.warning("study.db didn't agree with the trials' folders, and is made anew; it's %s now", aside)

    def _record(self, trial_id: str) -> TrialRecord | None:
        try:
            return read_trial(self._run.trial(trial_id))
        except RunFolderError:
            return None

    def _write(self, study: _StudyFile, number: int, record: TrialRecord | None) -> None:
        if number == _BASE and record is not None:
            study.set_attrs(base_eval_loss=record.best_eval_loss, base_score=record.score)
        study.write(number, self._derived(number, record))

    def _derived(self, number: int, record: TrialRecord | None) -> FrozenTrial:
        """Return a trial as its folder says it is; `record` None: there is no folder, or it was set aside."""
        if number == _BASE:
            return create_trial(state=OptunaState.FAIL, user_attrs={_NAME: "base"})
        if record is None:
            return _WITHOUT_A_FOLDER
        state = OptunaState.RUNNING if record.ending is None else state_of(record.ending.kind, record.best_eval_loss)
        attrs = {_NAME: record.name if record.origin is Origin.START else None, _SCORE: record.score}
        return create_trial(
            state=state,
            # As `optuna.Study.tell` has it, the value of a pruned trial is its last intermediate value.
            value=record.best_eval_loss if state in (OptunaState.COMPLETE, OptunaState.PRUNED) else None,
            params=self._params(record),
            distributions=distributions(self._recipe.space),
            intermediate_values={point.tokens_seen: point.best_eval_loss for point in record.points},
            user_attrs={key: value for key, value in attrs.items() if value is not None},
            constraints=None if record.ending is None else {CONSTRAINT: float(record.state.is_infeasible)},
        )

    def _params(self, record: TrialRecord) -> dict[str, Any]:
        """Return a trial's hyperparameters as proposed; those of its length were shortened for the trial."""
        if self._shortened is None:
            self._shortened = self._run.read_search().shortened
        return proposed_values(record.config.hyperparameters, self._recipe.space, self._shortened or 1.0)


class _StudyFile:
    """Study in study.db, created if it doesn't exist; `trials` are those that it has, by number."""

    def __init__(self, run: RunDir, trials: list[FrozenTrial]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = _open_storage(run)
        optuna.create_study(study_name=STUDY_NAME, storage=self._storage, direction="minimize", load_if_exists=True)
        self._id = self._storage.get_study_id_from_name(STUDY_NAME)
        self._trials = trials

    def write(self, number: int, trial: FrozenTrial) -> None:
        """Make the trial of this number equal to `trial`, unless it has ended; may be repeated after an error."""
        while number >= len(self._trials):
            new = trial if number == len(self._trials) else _WITHOUT_A_FOLDER
            self._storage.create_new_trial(self._id, new)
            self._trials.append(new)
        if not self._trials[number].state.is_finished():
            self._extend(number, self._trials[number], trial)
            self._trials[number] = trial

    def _extend(self, number: int, before: FrozenTrial, now: FrozenTrial) -> None:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        for step, loss in sorted(now.intermediate_values.items() - before.intermediate_values.items()):
            self._storage.set_trial_intermediate_value(trial_id, step, loss)
        for key, value in now.user_attrs.items() - before.user_attrs.items():
            self._storage.set_trial_user_attr(trial_id, key, value)
        for key, value in now.system_attrs.items():  # the constraint
            self._storage.set_trial_system_attr(trial_id, key, value)
        if now.state.is_finished():
            self._storage.set_trial_state_values(trial_id, now.state, now.values)

    def set_attrs(self, **values: float | None) -> None:
        """Set attributes of the study; None: it has no such value."""
        for key, value in values.items():
            if value is not None:
                self._storage.set_study_user_attr(self._id, key, value)


def read_study(run: RunDir) -> list[FrozenTrial] | None:
    """Return the trials of study.db, by number; None: it is damaged or gone.

    If another program holds the file, an error is raised for which `is_locked` is true.
    """
    path = run.path / "study.db"
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(path, timeout=_LOCK_SECONDS)) as connection:
            if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                return None
            # Optuna would write its tables into an empty file, even for a read.
            if connection.execute("SELECT name FROM sqlite_master WHERE name = 'studies'").fetchone() is None:
                return None
        storage = _open_storage(run)
        return storage.get_all_trials(storage.get_study_id_from_name(STUDY_NAME))
    except Exception as error:
        if is_locked(error):
            raise
        # SQLite, SQLAlchemy, Alembic and Optuna raise errors of many kinds, also for values that are not Optuna's.
        logger.debug("study.db can't be read", exc_info=True)
        return None


def is_locked(error: BaseException | None) -> bool:
    """Whether an error of SQLite, SQLAlchemy or Optuna means that another program holds the database."""
    while error is not None:
        if isinstance(error, sqlite3.OperationalError):
            return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        error = getattr(error, "orig", None) or error.__cause__
    return False


def state_of(kind: TrialState, best_eval_loss: float | None) -> OptunaState:
    """Return Optuna's trial state for how a trial ended."""
    if kind.is_complete and best_eval_loss is not None:
        return OptunaState.COMPLETE
    if kind is TrialState.FAILED:
        return OptunaState.FAIL
    return OptunaState.PRUNED


def _can_become(found: Sequence[FrozenTrial], derived: Sequence[FrozenTrial]) -> bool:
    """Whether the trials of a study, by number, become the `derived` ones if values, endings and trials are added."""
    return len(found) <= len(derived) and all(map(_is_or_becomes, found, derived))


def _is_or_becomes(found: FrozenTrial, derived: FrozenTrial) -> bool:
    if derived.state is OptunaState.FAIL and not derived.params:  # the base model, or a trial without a folder
        is_open = found.state in (OptunaState.RUNNING, OptunaState.FAIL)
        return is_open and derived.user_attrs.items() <= found.user_attrs.items()
    if found.params != derived.params:
        return False
    same = (found.state, found.value, found.intermediate_values)
    return found.state is OptunaState.RUNNING or same == (derived.state, derived.value, derived.intermediate_values)


def _open_storage(run: RunDir) -> RDBStorage:
    """Open the study's storage, which waits for another program's lock no longer than `_LOCK_SECONDS`."""
    return RDBStorage(run.study_url, engine_kwargs={"connect_args": {"timeout": _LOCK_SECONDS}})


def _set_aside(run: RunDir) -> Path | None:
    """Rename study.db and what SQLite keeps beside it; return the new path, or None if nothing is there."""
    files = (run.path / f"study.db{end}" for end in ("", "-journal", "-wal", "-shm"))
    moved = [path.rename(_free_name(path)) for path in files if path.exists() or path.is_symlink()]
    return next(iter(moved), None)


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.broken-{number}") for number in range(1, _MOST_SET_ASIDE))
    return next(name for name in names if not name.exists())
