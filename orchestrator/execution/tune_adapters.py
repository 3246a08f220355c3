"""Adapters between Ray Tune and the controller: Tune's searcher, scheduler, stopper and progress callback."""

from __future__ import annotations

import itertools
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ray.tune import Stopper
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.controller.controller import SearchController
from orchestrator.controller.failure_policy import DIED, TrialExit
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.exit_reasons import how_it_left
from orchestrator.execution.reporting import REQUEST_KEY, TROUBLES_KEY
from orchestrator.execution.worker_pool import WorkerPool
from orchestrator.planning.placement import trl_reason
from orchestrator.state.run_dir import RunDir
from orchestrator.storage.visibility import UNSEEN
from trials.records.trial_dir import EvalPoint
from trials.system.disk_full import says_disk_full

logger = logging.getLogger(__name__)

_POINT_FIELDS = tuple(field.name for field in fields(EvalPoint))


class _NotPickled:
    """Pickles as empty: Tune pickles what it is given to restore from, but a search resumes from its run folder."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def request_of(trial: Trial) -> TrialRequest:
    """Return the request in the configuration of a Ray Tune trial."""
    request: TrialRequest = trial.config[REQUEST_KEY]
    return request


class SearcherAdapter(_NotPickled, Searcher):  # type: ignore[misc]  # Ray ships without complete types
    """Tune's searcher: asks the controller for the next trial, and reports ended ones to it."""

    def __init__(self, controller: SearchController, run: RunDir, pool: WorkerPool) -> None:
        # No metric: with one, Tune ends the whole search if a trial ends before its first report.
        super().__init__()
        self._controller = controller
        self._pool = pool
        self._our_ids: dict[str, str] = {}
        self._leaving: list[tuple[str, TrialExit]] = []
        self._errors: dict[str, TrialExit] = {}
        self._by_trl = trl_reason(controller.search) is not None
        ray = run.path / "ray"
        self._segments = {path.name for path in ray.iterdir()} if ray.is_dir() else set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return a configuration for Tune; None: nothing now, ask again; FINISHED: nothing more."""
        self.report_exits()
        if not self._pool.has_room:
            return None
        answer = self._controller.suggest()
        if not isinstance(answer, TrialRequest):
            return Searcher.FINISHED if answer == "over" else None
        self._our_ids[trial_id] = answer.trial_id
        request = replace(
            answer,
            segment=self._segment(answer.trial_id),
            by_trl=self._by_trl,
            worker=self._pool.take_slot(answer.trial_id),
        )
        return {REQUEST_KEY: request}

    def _segment(self, trial_id: str) -> str:
        """Return a new segment name, for a folder in RUN/ray: each segment of a trial is a trial of its own to Tune."""
        names = itertools.chain([trial_id], (f"{trial_id}-{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in self._segments)
        self._segments.add(name)
        return name

    def record_error(self, trial_id: str, left: TrialExit) -> None:
        """Record how an error ended a Tune trial; Tune calls `on_trial_complete` for it next."""
        self._errors[trial_id] = left

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report a trial's end to the controller; Tune calls this for every trial, however it ended."""
        # The slot is freed first, because the controller then removes files from the trial's folder.
        self._pool.free_slot(self._our_ids[trial_id])
        if error:
            self._leaving.append((self._our_ids[trial_id], self._errors.pop(trial_id, DIED)))
            self.report_exits()
        else:
            self._controller.on_trial_end(self._our_ids[trial_id])

    def report_exits(self) -> None:
        """Report trials that ended with an error to the controller, as soon as they have left their worker.

        A proxy can die while its trial still runs in the worker.
        """
        for leaving in [leaving for leaving in self._leaving if self._pool.has_left(leaving[0])]:
            self._leaving.remove(leaving)
            self._controller.on_trial_end(*leaving)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study and the records are on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; see `save`."""


class QuietProgress(_NotPickled, TrialProgressCallback):  # type: ignore[misc]
    """Replaces Tune's progress callback, which prints at any verbosity; drops the statistics of ended trials.

    Tune writes all its trials to a file when the search is over, within the reserve. With the statistics of every
    metric that took 20 s for 2,293 segments of the demo on two cores.
    """

    def log_result(self, trial: Trial, result: dict[str, Any], error: bool = False) -> None:
        """Do nothing: the controller's listener shows the evaluation."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Drop a trial's statistics; Tune calls this last for every trial that ended without an error."""
        _drop_results(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Drop a trial's statistics; Tune calls this last for every trial that an error ended."""
        _drop_results(trial)


def _drop_results(trial: Trial) -> None:
    kept = trial.run_metadata
    kept.metric_analysis, kept.metric_n_steps, kept.last_result = {}, {}, {}


class SchedulerAdapter(_NotPickled, FIFOScheduler):  # type: ignore[misc]
    """Tune's scheduler: passes every evaluation to the controller, and returns its decision."""

    def __init__(self, controller: SearchController, searcher: SearcherAdapter) -> None:
        super().__init__()
        self._controller = controller
        self._searcher = searcher
        self.disk_trouble: str | None = None
        """Last line of the error of a trial whose disk is full, which ends the search; None: there is none."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Choose the trial that gets a free process: the newest, because processes for the others are starting.

        Tune ends a process that is starting for a trial if the trial gets another one. With the oldest first, as in
        FIFOScheduler, trials that are shorter than a process's start would keep others from ever getting a process.
        """
        waiting = (trial for trial in reversed(tune_controller.get_trials()) if trial.status == Trial.PENDING)
        return next(waiting, None)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Record how an error ended a trial; interrupt the search if its disk is full."""
        said = Path(trial.error_file).read_text(errors="replace", encoding="utf-8")
        if self.disk_trouble is None and says_disk_full(said):
            self.disk_trouble = said.strip().splitlines()[-1]
            self._controller.interrupt()
        self._searcher.record_error(trial.trial_id, how_it_left(trial.get_pickled_error(), said))
        if UNSEEN in said:
            logger.warning("%s", said.strip().splitlines()[-1])
        super().on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Pass a report of a trial to the controller; return Tune's CONTINUE or STOP."""
        point = EvalPoint(**{name: result[name] for name in _POINT_FIELDS})
        for about, text in result.get(TROUBLES_KEY, ()):
            self._controller.on_trouble(about, text)
        goes_on = self._controller.on_result(request_of(trial).trial_id, point)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


class StopperAdapter(_NotPickled, Stopper):  # type: ignore[misc]
    """Tune's stopper: stops all trials when the controller says so, and runs the controller's deferred work."""

    def __init__(self, controller: SearchController, searcher: SearcherAdapter, pool: WorkerPool) -> None:
        self._controller = controller
        self._searcher = searcher
        self._pool = pool

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: the scheduler stops single trials."""
        return False

    def stop_all(self) -> bool:
        """Return whether to stop all trials; Tune calls this several times a second.

        It also restarts hung workers, reports exits, and gives the controller time for deferred work.
        """
        self._searcher.report_exits()
        hung = self._pool.restart_hung()
        if hung:
            logger.warning("a worker hangs and is started again; in it were trials %s", ", ".join(hung))
        if self._controller.should_stop:
            # Tune waits for the proxies to end, and they wait for their trials.
            self._pool.free_all_slots()
            return True
        self._controller.on_idle()
        return False
