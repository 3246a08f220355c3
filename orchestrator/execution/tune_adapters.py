"""What Ray Tune asks the controller by: a searcher, a scheduler and a stopper, which hand its questions on."""

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
from orchestrator.controller.proxy_errors import DIED, TrialExit
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
    """Tune pickles what it's given to restore from later. We restore from the run folder, so nothing goes along."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def request_of(trial: Trial) -> TrialRequest:
    """Return the request that a trial of Ray Tune's was made of."""
    request: TrialRequest = trial.config[REQUEST_KEY]
    return request


class SearcherAdapter(_NotPickled, Searcher):  # type: ignore[misc]  # Ray ships without complete types
    """Asks the controller what to run."""

    def __init__(self, controller: SearchController, run: RunDir, engines: WorkerPool) -> None:
        # No metric: Tune would end the whole search over a trial that ends before its first report.
        super().__init__()
        self._controller = controller
        self._engines = engines
        self._our_ids: dict[str, str] = {}
        self._leaving: list[tuple[str, TrialExit]] = []
        self._errors: dict[str, TrialExit] = {}
        self._by_trl = trl_reason(controller.search) is not None
        self._logs = run.logs
        ray = run.path / "ray"
        self._segments = {path.name for path in ray.iterdir()} if ray.is_dir() else set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """None: nothing now, ask again. FINISHED: nothing more."""
        self.report_exits()
        if not self._engines.has_room:
            return None
        answer = self._controller.suggest()
        if not isinstance(answer, TrialRequest):
            return Searcher.FINISHED if answer == "over" else None
        self._our_ids[trial_id] = answer.trial_id
        request = replace(
            answer,
            segment=self._segment(answer.trial_id),
            log=self._logs / f"{answer.trial_id}.log",
            by_trl=self._by_trl,
            worker=self._engines.take_slot(answer.trial_id),
        )
        return {REQUEST_KEY: request}

    def _segment(self, trial_id: str) -> str:
        """A folder in ray/ for what Tune takes for a trial of its own: one of ours from where it begins or goes on."""
        names = itertools.chain([trial_id], (f"{trial_id}-{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in self._segments)
        self._segments.add(name)
        return name

    def record_error(self, trial_id: str, left: TrialExit) -> None:
        """How an error has ended a trial of Tune's, which Tune says next."""
        self._errors[trial_id] = left

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune calls this for every trial that ended, however it did."""
        # First the slot: the controller tidies up the trial's folder.
        self._engines.free_slot(self._our_ids[trial_id])
        if error:
            self._leaving.append((self._our_ids[trial_id], self._errors.pop(trial_id, DIED)))
            self.report_exits()
        else:
            self._controller.on_trial_end(self._our_ids[trial_id])

    def report_exits(self) -> None:
        """Tells the controller of trials that ended with an error, as soon as nothing of them runs any more.

        A proxy can die, and its trial still be in its engine, at work on an evaluation.
        """
        for leaving in [leaving for leaving in self._leaving if self._engines.has_left(leaving[0])]:
            self._leaving.remove(leaving)
            self._controller.on_trial_end(*leaving)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study and the records are on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore; see `save`."""


class QuietProgress(_NotPickled, TrialProgressCallback):  # type: ignore[misc]
    """Stands in for Tune's own, which prints lines at whatever verbosity, and makes ended trials small.

    Tune writes all its trials to a file when the search is over, within the reserve. With the statistics that it keeps
    of every metric that took 20 s for 2,293 segments of the demo on two cores.
    """

    def log_result(self, trial: Trial, result: dict[str, Any], error: bool = False) -> None:
        """Does nothing: the controller's listener tells of it."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune calls this last for every trial that ended without an error."""
        _drop_results(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune calls this last for every trial that an error has ended."""
        _drop_results(trial)


def _drop_results(trial: Trial) -> None:
    kept = trial.run_metadata
    kept.metric_analysis, kept.metric_n_steps, kept.last_result = {}, {}, {}


class SchedulerAdapter(_NotPickled, FIFOScheduler):  # type: ignore[misc]
    """Hands every evaluation to the controller, and its word back."""

    def __init__(self, controller: SearchController, searcher: SearcherAdapter) -> None:
        super().__init__()
        self._controller = controller
        self._searcher = searcher
        self.disk_trouble: str | None = None
        """What a trial said that couldn't write to its disk any more: nothing can go on then."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Which trial gets a process that has become free: the newest, as the others' own are on their way.

        Tune ends what it has begun to start for a trial that gets another process. Oldest first, as FIFOScheduler does
        it, trials that are shorter than the start of a process would keep others from ever having one.
        """
        waiting = (trial for trial in reversed(tune_controller.get_trials()) if trial.status == Trial.PENDING)
        return next(waiting, None)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Tune calls this for every trial that an error has ended."""
        said = Path(trial.error_file).read_text(errors="replace", encoding="utf-8")
        if self.disk_trouble is None and says_disk_full(said):
            self.disk_trouble = said.strip().splitlines()[-1]
            self._controller.interrupt()
        is_held = request_of(trial).worker is not None
        self._searcher.record_error(trial.trial_id, how_it_left(trial.get_pickled_error(), said, is_held=is_held))
        if UNSEEN in said:
            logger.warning("%s", said.strip().splitlines()[-1])
        super().on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Tune calls this for every report of a trial."""
        point = EvalPoint(**{name: result[name] for name in _POINT_FIELDS})
        for about, text in result.get(TROUBLES_KEY, ()):
            self._controller.on_trouble(about, text)
        goes_on = self._controller.on_result(request_of(trial).trial_id, point)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


class StopperAdapter(_NotPickled, Stopper):  # type: ignore[misc]
    """Ends everything at once when the controller says so."""

    def __init__(self, controller: SearchController, searcher: SearcherAdapter, engines: WorkerPool) -> None:
        self._controller = controller
        self._searcher = searcher
        self._engines = engines

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Single trials are the scheduler's affair."""
        return False

    def stop_all(self) -> bool:
        """Tune asks several times a second."""
        self._searcher.report_exits()
        hung = self._engines.restart_hung()
        if hung:
            logger.warning("an engine hangs and is started again; in it were trials %s", ", ".join(hung))
        if self._controller.should_stop:
            # Tune waits for proxies to end, and they wait for their trials.
            self._engines.free_all_slots()
            return True
        self._controller.on_idle()
        return False
