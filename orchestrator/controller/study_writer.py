"""Writes a search's study while other programs, such as a database browser, may lock study.db.

Records wait in a queue while the file is locked. If it is locked when the search begins, a study in memory replaces it,
and study.db is brought up to date from the trials' folders later. For one thread at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from orchestrator.controller.study import StudyRecorder, is_locked, study_number
from orchestrator.controller.study_rebuild import reconcile_study, study_in_memory
from orchestrator.state.run_dir import RunDir
from search_spaces.schema import Recipe
from trials.records.trial_dir import TrialRecord

_BETWEEN_TRIES_SECONDS = 10.0


class StudyWriter:
    """Study of a search, and the queue of records for it; `say` shows a sentence to people."""

    def __init__(
        self,
        run: RunDir,
        recipe: Recipe,
        records: Sequence[TrialRecord],
        lost: set[str],
        say: Callable[[str], None],
    ) -> None:
        self._run, self._recipe, self._lost, self._say = run, recipe, lost, say
        self._later: deque[Callable[[], None]] = deque()
        self._next_try = 0.0
        self._has_said = False
        self._stands_in = False
        try:
            self.study = self._opened(records)
        except Exception as error:
            self._wait(error)
            self._stands_in = True
            self.study = StudyRecorder(study_in_memory(recipe, records, lost), recipe, self._lost_numbers)

    def write_later(self, tell: Callable[[], None]) -> None:
        """Queue a call that writes to the study; it is repeated if the file was locked."""
        self._later.append(tell)

    def flush(self, *, at_once: bool = False) -> None:
        """Run the queued calls, unless the file was locked some seconds ago and `at_once` is False.

        If the file is locked it takes about `LOCK_SECONDS`.
        """
        if self._next_try > time.monotonic() and not at_once and not self._stands_in:
            return
        try:
            while self._later:
                self._later[0]()
                self._later.popleft()
            if self._stands_in and (at_once or self._next_try <= time.monotonic()):
                self._catch_up()
        except Exception as error:
            self._wait(error)

    def write(self, record: TrialRecord) -> None:
        """Write a trial's evaluations and ending to the study, if the trial is open there."""
        number = study_number(record.id)
        if not self.study.is_open(number):
            return
        for point in record.points:
            self.study.report(number, point)  # a diverged trial's last evaluation was never reported
        if record.ending is not None:
            self.study.record_end(number, record.ending.kind, record.best_eval_loss)

    @property
    def _lost_numbers(self) -> set[int]:
        return {study_number(each) for each in self._lost}

    def _opened(self, records: Sequence[TrialRecord]) -> StudyRecorder:
        reconcile_study(self._run, self._recipe, records, self._lost)
        return StudyRecorder(self._run.study_url, self._recipe, self._lost_numbers)

    def _catch_up(self) -> None:
        records = self._run.records()
        self.study, self._stands_in = self._opened(records), False
        for record in records:
            self.write_later(partial(self.write, record))
        self.flush(at_once=True)

    def _wait(self, error: Exception) -> None:
        """Set the time of the next attempt. Raises the error if it is not that the file is locked."""
        if not is_locked(error):
            raise error
        self._next_try = time.monotonic() + _BETWEEN_TRIES_SECONDS
        if not self._has_said:
            self._has_said = True
            self._say(
                "another program holds study.db, such as a database browser: the search goes on, and tells the study "
                "what it has missed once the file is free"
            )
