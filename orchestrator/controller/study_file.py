"""File study.db: an Optuna study in SQLite, which other programs may lock."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from dataclasses import dataclass

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from orchestrator.controller.derived_trials import EXPORTED, WITHOUT_A_FOLDER
from orchestrator.state.run_dir import RunDir

LOCK_SECONDS = 0.5
"""Seconds to wait for another program's lock; a database browser may hold it for an unlimited time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundStudy:
    """Study as it is in study.db: its name, its trials by number, and the id of the trial that it says was exported."""

    name: str
    trials: list[FrozenTrial]
    exported: str | None


class StudyFile:
    """Study in a file; `found` is what is in it, None: it is made, and has the given name."""

    def __init__(self, url: str, name: str, found: FoundStudy | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = _open_storage(url)
        name = name if found is None else found.name
        optuna.create_study(study_name=name, storage=self._storage, direction="minimize", load_if_exists=True)
        self._id = self._storage.get_study_id_from_name(name)
        self._trials = [] if found is None else found.trials

    def write(self, number: int, trial: FrozenTrial) -> None:
        """Make the trial of this number equal to `trial`, unless it has ended; may be repeated after an error."""
        while number >= len(self._trials):
            new = trial if number == len(self._trials) else WITHOUT_A_FOLDER
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

    def close(self) -> None:
        """Close the file."""
        self._storage.engine.dispose()

    def set_attrs(self, **values: float | str | None) -> None:
        """Set attributes of the study; None: it has no such value."""
        for key, value in values.items():
            if value is not None:
                self._storage.set_study_user_attr(self._id, key, value)


def read_study(run: RunDir) -> FoundStudy | None:
    """Return the study of study.db; None: it is damaged or gone.

    If another program holds the file, an error is raised for which `is_locked` is true.
    """
    path = run.path / "study.db"
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
            if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                return None
            # Optuna would write its tables into an empty file, even for a read.
            if connection.execute("SELECT name FROM sqlite_master WHERE name = 'studies'").fetchone() is None:
                return None
        storage = _open_storage(run.study_url)
        (study,) = storage.get_all_studies()
        exported = study.user_attrs.get(EXPORTED)
        return FoundStudy(study.study_name, storage.get_all_trials(study._study_id), exported)
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


def _open_storage(url: str) -> RDBStorage:
    """Open the study's storage, which waits for another program's lock no longer than `LOCK_SECONDS`."""
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})
