"""Makes a search's study anew from its trials' folders, where the study is damaged or gone.

The folders are what a search knows; study.db tells it to Optuna and to people. A damaged one is set aside.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DatabaseError

from orchestrator.run_folder import RunFolder
from orchestrator.study import CONSTRAINT, INFEASIBLE, NAME, STUDY_NAME, distribution, encode, state_of, trial_id_of
from search_spaces.schema import Recipe
from trials.records import Origin, TrialRecord

_MOST_SET_ASIDE = 1000

logger = logging.getLogger(__name__)


def settle_study(run: RunFolder, recipe: Recipe, records: Sequence[TrialRecord]) -> None:
    """Leaves a study that holds every trial on record, or none at all if there is none; `records` are all of them.

    It may be behind the folders by some trials, as it's written when there is time for that (Conductor.tidy).
    """
    trained = {record.id: record for record in records if record.origin is not Origin.BASE}
    if not trained:
        return
    if _is_sound(run, trained):
        study = optuna.load_study(study_name=STUDY_NAME, storage=run.study_url)
    else:
        _set_aside(run)
        study = _new_study(run)
        logger.warning("study.db was damaged or gone; it's made anew from the %d trials on disk", len(trained))
    _add_missing(study, recipe, trained)


def _is_sound(run: RunFolder, trained: dict[str, TrialRecord]) -> bool:
    """Whether the study can be read, and waits for those of its trials that can go on."""
    path = run.path / "study.db"
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                return False
        trials = optuna.load_study(study_name=STUDY_NAME, storage=run.study_url).get_trials(deepcopy=False)
    except (sqlite3.DatabaseError, DatabaseError, KeyError):
        return False
    can_go_on = {each for each, record in trained.items() if record.ending is None}
    return all(trial.state is TrialState.RUNNING for trial in trials if trial_id_of(trial.number) in can_go_on)


def _set_aside(run: RunFolder) -> None:
    for name in ("study.db", "study.db-journal", "study.db-wal", "study.db-shm"):
        path = run.path / name
        if path.exists():
            names = (f"{name}.broken-{number}" for number in range(1, _MOST_SET_ASIDE))
            path.rename(next(run.path / free for free in names if not (run.path / free).exists()))


def _new_study(run: RunFolder) -> optuna.Study:
    study = optuna.create_study(study_name=STUDY_NAME, storage=run.study_url, direction="minimize")
    base = next((record for record in run.records() if record.origin is Origin.BASE and record.points), None)
    if base is not None:
        study.set_user_attr("base_eval_loss", base.best_eval_loss)
    return study


def _add_missing(study: optuna.Study, recipe: Recipe, trained: dict[str, TrialRecord]) -> None:
    """Every trial under its own number; a number without a folder was asked for and never began."""
    for number in range(len(study.get_trials(deepcopy=False)), max(int(each) for each in trained)):
        record = trained.get(trial_id_of(number))
        study.add_trial(create_trial(state=TrialState.FAIL) if record is None else _as_in_study(record, recipe))


def _as_in_study(record: TrialRecord, recipe: Recipe) -> FrozenTrial:
    hyperparameters = record.config.hyperparameters.model_dump()
    space = {name: distribution(name, dimension) for name, dimension in recipe.space.items()}
    state = TrialState.RUNNING if record.ending is None else state_of(record.ending.kind, record.best_eval_loss)
    trial = create_trial(
        state=state,
        params={name: encode(hyperparameters[name], recipe.space[name]) for name in space},
        distributions=space,
        intermediate_values={point.tokens_seen: point.best_eval_loss for point in record.points},
        user_attrs={NAME: record.name} if record.origin is Origin.START else {},
        value=record.best_eval_loss if state is TrialState.COMPLETE else None,
        constraints=_constraints(record),
    )
    trial.datetime_start = trial.datetime_start or datetime.now()
    return trial


def _constraints(record: TrialRecord) -> dict[str, float] | None:
    """Optuna takes a constraint once, so an open trial has none yet."""
    return None if record.ending is None else {CONSTRAINT: 1.0 if record.ending.kind in INFEASIBLE else 0.0}
