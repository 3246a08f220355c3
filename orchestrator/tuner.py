"""Ray Tune, which asks nobody but the conductor: searcher, scheduler and stopper hand its questions on.

Beside `orchestrator.worker` the only module that imports Ray.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import RunConfig, Stopper, TuneConfig
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.conductor import Assignment, Conductor
from orchestrator.run_folder import RunFolder, Search
from orchestrator.worker import run_assignment
from trials.errors import InputError, SearchBroken
from trials.records import EvalPoint

# A stopped trial's thread may have to finish its W&B run before its process can take the next trial.
_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours, in _interrupts
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial's folder has its metrics and TensorBoard events already
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # we resume from the run folder; Tune's own snapshots race with their clean-up
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output keeps quiet when it's told to
}
_POINT_FIELDS = tuple(field.name for field in fields(EvalPoint))


@contextmanager
def ray_session(*, dashboard: bool) -> Iterator[str | None]:
    """Ray, started here or joined where it runs already; gives the dashboard's address where there is one."""
    os.environ.update(_ENVIRONMENT)
    context = ray.init(include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else None
    finally:
        ray.shutdown()


def slots(search: Search) -> int:
    """Trials that run at once: one per group of GPUs, or per core where there are none."""
    resources = ray.cluster_resources()
    gpus = search.gpus_per_trial
    available = int(resources.get("GPU", 0)) // gpus if gpus else int(resources.get("CPU", 1))
    limit = search.recipe.search.concurrent_trials
    if available == 0:
        raise InputError(f"no node of the Ray cluster has {gpus} free GPU(s). Add one, or give --gpus-per-trial 0.")
    return available if limit is None else min(limit, available)


def run_tune(conductor: Conductor, run: RunFolder, search: Search) -> None:
    """Runs trials until the conductor has no more, or says that everything must stop.

    Raises `SearchBroken` if Ray Tune ends with an error of its own.
    """
    resources = {"cpu": 1, "gpu": search.gpus_per_trial}
    tuner = tune.Tuner(
        tune.with_resources(run_assignment, resources),
        tune_config=TuneConfig(
            num_samples=-1,
            search_alg=_Searcher(conductor, run, search),
            scheduler=_Scheduler(conductor),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.config["trial_id"]),
        ),
        run_config=RunConfig(name="ray", storage_path=str(run.path), verbose=0, stop=_Stopper(conductor), callbacks=[]),
    )
    with _interrupts(conductor):
        try:
            tuner.fit()
        except (TuneError, RayError) as error:
            raise SearchBroken(f"Ray Tune gave up: {str(error).strip().splitlines()[-1]}") from error
        finally:
            conductor.close()


class _StaysHere:
    """Tune pickles what it's given to restore from later. We restore from the run folder, so nothing goes along."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_StaysHere, Searcher):  # type: ignore[misc]  # Ray ships without complete types
    """Asks the conductor what to run."""

    def __init__(self, conductor: Conductor, run: RunFolder, search: Search) -> None:
        # No metric: Tune would end the whole search over a trial that ends before its first report.
        super().__init__()
        self._conductor = conductor
        self._run = run
        self._search = search
        self._our_ids: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """None: nothing now, ask again. FINISHED: nothing more."""
        answer = self._conductor.next_trial()
        if not isinstance(answer, Assignment):
            return Searcher.FINISHED if answer == "over" else None
        self._our_ids[trial_id] = answer.trial_id
        return {
            "trial_id": answer.trial_id,
            "origin": answer.origin.value,
            "config": answer.config.model_dump_json(),
            "folder": str(self._run.trial(answer.trial_id)),
            "group": self._run.path.name,
            "fingerprint": self._search.data.get("fingerprint"),
            "stop_at": self._search.deadline.training_ends.timestamp(),
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune calls this for every trial that ended, however it did."""
        self._conductor.on_end(self._our_ids[trial_id], died=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study and the records are on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore; see `save`."""


class _Scheduler(_StaysHere, FIFOScheduler):  # type: ignore[misc]
    """Hands every evaluation to the conductor, and its word back."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Tune calls this for every report of a trial."""
        point = EvalPoint(**{name: result[name] for name in _POINT_FIELDS})
        goes_on = self._conductor.on_eval(trial.config["trial_id"], point)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


class _Stopper(_StaysHere, Stopper):  # type: ignore[misc]
    """Ends everything at once when the conductor says so."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Single trials are the scheduler's affair."""
        return False

    def stop_all(self) -> bool:
        """Tune asks several times a second."""
        return self._conductor.must_stop


@contextmanager
def _interrupts(conductor: Conductor) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) stops the search in order, the second is Python's own."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        conductor.interrupt()
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
