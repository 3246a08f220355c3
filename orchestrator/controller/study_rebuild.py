"""Rebuilds a search's study from its trials' folders if study.db is damaged or gone.

The folders are the source of truth; study.db is a copy for Optuna and for people. A damaged file is set aside. A file
that another program holds does not count as damaged (`orchestrator.controller.study_writer`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from orchestrator.controller.study import (
    CONSTRAINT,
    LOCK_SECONDS,
    NAME,
    STUDY_NAME,
    distribution,
    encode,
    is_locked,
    open_storage,
    state_of,
    trial_id_of,
)
from orchestrator.state.run_dir import RunDir
from search_spaces.schema import Recipe
from trials.records.trial_dir import Origin, TrialRecord

_MOST_SET_ASIDE = 1000

logger = logging.getLogger(__name__)


def reconcile_study(
    run: RunDir, recipe: Recipe, records: Sequence[TrialRecord], lost: Collection[str] = ()
) -> Path | None:
    """Make study.db hold every trial in `records`; `lost` are ids of trials that were set aside.

    The study may be behind the folders by some trials, because it is written when the controller is idle
    (`SearchController.on_idle`). Return the new path of a damaged file; None: it was sound, or gone. If another program
    holds the file, nothing is changed, and an error is raised for which `is_locked` is true.
    """
    trained = trained_by_id(records)
    aside = None
    if is_sound(run, trained):
        study = optuna.load_study(study_name=STUDY_NAME, storage=open_storage(run.study_url))
    else:
        aside = _set_aside(run)
        if not trained and not lost:
            return aside
        study = _new_study(open_storage(run.study_url), records)
        logger.warning("study.db was damaged or gone; it's made anew from the %d trials on disk", len(trained))
    _add_missing(study, recipe, trained, lost)
    return aside


def study_in_memory(recipe: Recipe, records: Sequence[TrialRecord], lost: Collection[str]) -> InMemoryStorage:
    """Return what study.db would hold, made from the trials' folders."""
    storage = InMemoryStorage()
    _add_missing(_new_study(storage, records), recipe, trained_by_id(records), lost)
    return storage


def is_sound(run: RunDir, trained: Mapping[str, TrialRecord]) -> bool:
    """Whether the study can be read, and has the trials that can go on as RUNNING.

    If another program holds the file, an error is raised for which `is_locked` is true.
    """
    path = run.path / "study.db"
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
            if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                return False
            # Optuna would write its tables into an empty file, even for a read.
            if connection.execute("SELECT name FROM sqlite_master WHERE name = 'studies'").fetchone() is None:
                return False
        study = optuna.load_study(study_name=STUDY_NAME, storage=open_storage(run.study_url))
        trials = study.get_trials(deepcopy=False)
    except Exception as error:
        if is_locked(error):
            raise
        # SQLite, SQLAlchemy, Alembic and Optuna raise errors of many kinds, also for values that are not Optuna's.
        logger.debug("study.db can't be read", exc_info=True)
        return False
    can_go_on = {each for each, record in trained.items() if record.ending is None}
    return all(trial.state is OptunaState.RUNNING for trial in trials if trial_id_of(trial.number) in can_go_on)


def trained_by_id(records: Sequence[TrialRecord]) -> dict[str, TrialRecord]:
    """Return all trials but the base model, by id."""
    return {record.id: record for record in records if record.origin is not Origin.BASE}


def _set_aside(run: RunDir) -> Path | None:
    aside = None
    for name in ("study.db", "study.db-journal", "study.db-wal", "study.db-shm"):
        path = run.path / name
        if path.exists() or path.is_symlink():
            names = (f"{name}.broken-{number}" for number in range(1, _MOST_SET_ASIDE))
            moved = path.rename(next(run.path / free for free in names if not (run.path / free).exists()))
            aside = aside or moved
    return aside


def _new_study(storage: BaseStorage, records: Sequence[TrialRecord]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=STUDY_NAME, storage=storage, direction="minimize")
    base = next((record for record in records if record.origin is Origin.BASE and record.points), None)
    if base is not None:
        study.set_user_attr("base_eval_loss", base.best_eval_loss)
    return study


def _add_missing(
    study: optuna.Study, recipe: Recipe, trained: Mapping[str, TrialRecord], lost: Collection[str]
) -> None:
    """Add every missing trial under its own number.

    A number without a record is added as failed: it never began, or its folder was set aside.
    """
    most = max((int(each) for each in (*trained, *lost)), default=0)
    for number in range(len(study.get_trials(deepcopy=False)), most):
        record = trained.get(trial_id_of(number))
        study.add_trial(create_trial(state=OptunaState.FAIL) if record is None else _as_in_study(record, recipe))


def _as_in_study(record: TrialRecord, recipe: Recipe) -> FrozenTrial:
    hyperparameters = record.config.hyperparameters.model_dump()
    space = {name: distribution(name, dimension) for name, dimension in recipe.space.items()}
    state = OptunaState.RUNNING if record.ending is None else state_of(record.ending.kind, record.best_eval_loss)
    trial = create_trial(
        state=state,
        params={name: encode(hyperparameters[name], recipe.space[name]) for name in space},
        distributions=space,
        intermediate_values={point.tokens_seen: point.best_eval_loss for point in record.points},
        user_attrs={NAME: record.name} if record.origin is Origin.START else {},
        value=record.best_eval_loss if state is OptunaState.COMPLETE else None,
        constraints=_constraints(record),
    )
    trial.datetime_start = trial.datetime_start or datetime.now()
    return trial


def _constraints(record: TrialRecord) -> dict[str, float] | None:
    """Return the feasibility constraint; None for an open trial, because Optuna accepts a constraint only once."""
    return None if record.ending is None else {CONSTRAINT: 1.0 if record.state.is_infeasible else 0.0}
