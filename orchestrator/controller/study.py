"""Optuna study of a search in RUN/study.db, derived from the trials' folders: for people and dashboards.

A trial's number in the study is its id; number 0 is the base model. The folders are the source of truth: the study is
written and never asked. It is behind the folders by some trials while a search runs. Once a trial was exported, the
study's best trial is that one.

running, paused                  RUNNING with its intermediate values, by tokens seen; a restart keeps it so
finished, early stopped          COMPLETE with best_eval_loss
out of time                      COMPLETE with best_eval_loss; how far it came is in its attributes
exported                         COMPLETE, however it ended
pruned                           PRUNED with its intermediate values
diverged, out of memory          PRUNED and infeasible: a violated constraint, which TPE avoids (a FAIL it forgets)
failed, lost, set aside          FAIL
the base model                   FAIL, because it has no hyperparameters, and samplers skip such trials

Attributes of a trial: trial_id, name (of a starting point), tokens_seen, fraction (of its own length) and score; once
it has ended, ending, reason and exported. Attributes of the study: base_eval_loss, base_score and exported.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from orchestrator.controller.derived_trials import BASE, DerivedTrials
from orchestrator.controller.study_file import StudyFile, is_locked, read_study
from orchestrator.state.run_dir import RunDir, sqlite_url
from orchestrator.state.trial_folders import ids_set_aside
from search_spaces.schema import Recipe
from trials.errors import RunFolderError
from trials.records.trial_dir import TrialRecord, read_trial

_BETWEEN_TRIES_SECONDS = 10.0
_MOST_SET_ASIDE = 1000
_BESIDE = ("-journal", "-wal", "-shm")
"""Ends of the names of what SQLite keeps beside its file."""

logger = logging.getLogger(__name__)


class StudyRecorder:
    """Keeps study.db equal to the trials' folders. For one thread at a time.

    A file that is damaged, or that the folders can't be appended to, is set aside and made anew. While another program,
    such as a database browser, locks the file, trials wait in a queue. `say` shows a sentence to people.
    """

    def __init__(self, run: RunDir, recipe: Recipe, records: Sequence[TrialRecord], say: Callable[[str], None]) -> None:
        self._run, self._say = run, say
        self._study: StudyFile | None = None
        """None: study.db has been locked until now."""
        self._changed: set[str] = set()
        self._derived = DerivedTrials(run, recipe)
        self._next_try = 0.0
        self._has_said = False
        with self._unless_locked():
            self._study = self._opened(records)

    def write_later(self, trial_id: str) -> None:
        """Queue a trial or the base model, whose folder has changed, for the next `flush`."""
        self._changed.add(trial_id)

    def flush(self, *, at_once: bool = False) -> None:
        """Write the queued trials, unless the file was locked some seconds ago and `at_once` is False.

        If the file is locked it takes about `LOCK_SECONDS`.
        """
        if self._next_try > time.monotonic() and not at_once:
            return
        with self._unless_locked():
            self._study = self._study or self._opened(self._run.records())
            for trial_id in sorted(self._changed, key=int):
                _write(self._study, self._derived, int(trial_id), self._record(trial_id))
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

    def _opened(self, records: Sequence[TrialRecord]) -> StudyFile:
        """Return the study with all trials in it; one that they can't be appended to is made anew."""
        numbered = _by_number(self._run, records)
        found = read_study(self._run)
        self._derived.exported = None if found is None else found.exported
        derived = [self._derived.derive(number, record) for number, record in enumerate(numbered)]
        if found is None or not _can_become(found.trials, derived):
            self._tell_why(_set_aside(self._run), is_damaged=found is None, is_begun=len(numbered) > 1)
            found = None
        study = StudyFile(self._run.study_url, _name_of(self._run), found)
        for number, record in enumerate(numbered):
            _write(study, self._derived, number, record)
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


def record_export(run: RunDir, recipe: Recipe, trial_id: str) -> None:
    """Make study.db anew, so that the trial that was exported is the study's best.

    Optuna's trials can't be changed once they have ended.
    """
    derived = DerivedTrials(run, recipe, trial_id)
    beside = run.path / "study.db.new"
    beside.unlink(missing_ok=True)
    study = StudyFile(sqlite_url(beside), _name_of(run), None)
    for number, record in enumerate(_by_number(run, run.records())):
        _write(study, derived, number, record)
    study.set_attrs(exported=trial_id)
    study.close()
    _remove_beside(run)
    beside.replace(run.path / "study.db")


def _by_number(run: RunDir, records: Sequence[TrialRecord]) -> list[TrialRecord | None]:
    """Return the records at the places of their trials' numbers; None: no folder, or it was set aside."""
    found = {int(record.id): record for record in records}
    last = max((*found, *map(int, ids_set_aside(run.path, records))), default=0)
    return [found.get(number) for number in range(last + 1)]


def _write(study: StudyFile, derived: DerivedTrials, number: int, record: TrialRecord | None) -> None:
    """Write a trial as derived; the base model's figures are attributes of the study."""
    if number == BASE and record is not None:
        study.set_attrs(base_eval_loss=record.best_eval_loss, base_score=record.score)
    study.write(number, derived.derive(number, record))


def _name_of(run: RunDir) -> str:
    """Return the study's name: the run folder's, of which bytes that are not UTF-8 are replaced."""
    return os.fsencode(run.path.name).decode("utf-8", "replace")


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


def _set_aside(run: RunDir) -> Path | None:
    """Rename study.db and what SQLite keeps beside it; return the new path, or None if nothing is there."""
    files = (run.path / f"study.db{end}" for end in ("", *_BESIDE))
    moved = [path.rename(_free_name(path)) for path in files if path.exists() or path.is_symlink()]
    return next(iter(moved), None)


def _remove_beside(run: RunDir) -> None:
    for end in _BESIDE:
        (run.path / f"study.db{end}").unlink(missing_ok=True)


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.broken-{number}") for number in range(1, _MOST_SET_ASIDE))
    return next(name for name in names if not name.exists())
