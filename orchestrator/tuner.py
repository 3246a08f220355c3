"""Ray Tune, which asks nobody but the conductor: searcher, scheduler and stopper hand its questions on."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import RunConfig, Stopper, TuneConfig
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.conductor import Assignment, Conductor
from orchestrator.engines import Engines, cores_of_nodes, gpus_of_nodes
from orchestrator.holder import hold_assignment
from orchestrator.markers import UNSEEN
from orchestrator.placement import place, why_no_engine
from orchestrator.run_folder import Placement, RunFolder, Search
from orchestrator.worker import run_assignment
from trials.disk import says_disk_full
from trials.errors import DiskFull, InputError, SearchBroken, first_line
from trials.records import EvalPoint

logger = logging.getLogger(__name__)

# A stopped trial's thread may have to finish its W&B run before its process can take the next trial.
_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours, in _interrupts
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial's folder has its metrics and TensorBoard events already
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # we resume from the run folder; Tune's own snapshots race with their clean-up
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output keeps quiet when it's told to
}
_HOLDER_CPUS = 0.01
_POINT_FIELDS = tuple(field.name for field in fields(EvalPoint))


@contextmanager
def ray_session(*, dashboard: bool) -> Iterator[str | None]:
    """Ray, started here or joined where it runs already; gives the dashboard's address where there is one.

    Raises `SearchBroken` if that can't be done.
    """
    os.environ.update(_ENVIRONMENT)
    try:
        context = ray.init(include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # whatever its parts raise
        raise SearchBroken(f"Ray can't be started or joined: {first_line(error)}") from error
    # A traceback for every trial whose process dies. They're in ray/, and what is done about it is said by us.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else None
    finally:
        ray.shutdown()


def placed(search: Search) -> Search:
    """The search on the machines that Ray has: its engines and slots. Raises `InputError` if not one trial can run."""
    if search.ranks > 1 and not gpus_of_nodes():
        search = replace(search, gpus_per_trial=0)
    cores, each = list(cores_of_nodes().values()), gpus_of_nodes()
    if not cores and not search.gpus_per_trial:
        raise InputError("no node of the Ray cluster has a CPU for trials. Start Ray there without --num-cpus=0.")
    found = place(search, gpus=sum(each), cores=cores, gpus_each=min(each, default=1))
    if found.slots == 0:
        raise InputError(
            f"a trial wants {search.gpus_per_trial} GPU(s), and the Ray cluster has {sum(each)}. Add some, or "
            "give a smaller --gpus-per-trial."
        )
    return replace(search, placement=found)


def run_tune(conductor: Conductor, run: RunFolder) -> None:
    """Runs trials until the conductor has no more, or says that everything must stop. Its search must be placed.

    Raises `SearchBroken` if Ray Tune ends with an error of its own, `DiskFull` if trials can't write to their disk.
    """
    search, placed = conductor.search, conductor.search.placement
    assert placed is not None
    engines = Engines(search, placed, run.path / "ray", run.logs)
    searcher, scheduler = _Searcher(conductor, run, engines), _Scheduler(conductor)
    tuner = tune.Tuner(
        _trainable(search, placed),
        tune_config=TuneConfig(
            num_samples=-1,
            # Else Tune would start their processes one after another, each waiting for the one before.
            max_concurrent_trials=placed.slots,
            search_alg=searcher,
            scheduler=scheduler,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.config["stretch"]),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run.path),
            verbose=0,
            stop=_Stopper(conductor, searcher, engines),
            callbacks=[_Quiet()],
        ),
    )
    with _interrupts(conductor):
        try:
            tuner.fit()
        except (TuneError, RayError) as error:
            raise SearchBroken(f"Ray Tune gave up: {str(error).strip().splitlines()[-1]}") from error
        except Exception:
            # On a full disk Tune fails over what it couldn't write itself.
            if scheduler.disk_trouble is None:
                raise
        finally:
            engines.close()
            conductor.close()
    if scheduler.disk_trouble is not None:
        raise DiskFull(scheduler.disk_trouble)


def _trainable(search: Search, placed: Placement) -> Any:
    """What Tune runs: holders of trials in engines, which have the GPUs, or trials in processes of their own."""
    if placed.engines:
        return tune.with_resources(hold_assignment, {"cpu": _HOLDER_CPUS})
    return tune.with_resources(run_assignment, {"cpu": 1, "gpu": search.gpus_per_trial})


class _StaysHere:
    """Tune pickles what it's given to restore from later. We restore from the run folder, so nothing goes along."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_StaysHere, Searcher):  # type: ignore[misc]  # Ray ships without complete types
    """Asks the conductor what to run."""

    def __init__(self, conductor: Conductor, run: RunFolder, engines: Engines) -> None:
        # No metric: Tune would end the whole search over a trial that ends before its first report.
        super().__init__()
        self._conductor = conductor
        self._engines = engines
        self._our_ids: dict[str, str] = {}
        self._leaving: list[str] = []
        self._group = run.path.name
        self._by_trl = why_no_engine(conductor.search) is not None
        self._logs = run.logs
        ray = run.path / "ray"
        self._stretches = {path.name for path in ray.iterdir()} if ray.is_dir() else set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """None: nothing now, ask again. FINISHED: nothing more."""
        self.settle()
        if not self._engines.has_room:
            return None
        answer = self._conductor.next_trial()
        if not isinstance(answer, Assignment):
            return Searcher.FINISHED if answer == "over" else None
        self._our_ids[trial_id] = answer.trial_id
        search = self._conductor.search
        return {
            "trial_id": answer.trial_id,
            "stretch": self._stretch(answer.trial_id),
            "resumes": answer.resumes,
            "origin": answer.origin.value,
            "config": answer.config.model_dump_json(),
            "folder": str(answer.folder),
            "remote": answer.remote,
            "log": str(self._logs / f"{answer.trial_id}.log"),
            "group": self._group,
            "fingerprint": search.data.get("fingerprint"),
            "stop_at": search.deadline.training_ends.timestamp(),
            "by_trl": self._by_trl,
            "engine": self._engines.take_slot(answer.trial_id),
        }

    def _stretch(self, trial_id: str) -> str:
        """A folder in ray/ for what Tune takes for a trial of its own: one of ours from where it begins or goes on."""
        names = itertools.chain([trial_id], (f"{trial_id}-{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in self._stretches)
        self._stretches.add(name)
        return name

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune calls this for every trial that ended, however it did."""
        # First the slot: the conductor tidies up the trial's folder.
        self._engines.free_slot(self._our_ids[trial_id])
        if error:
            self._leaving.append(self._our_ids[trial_id])
            self.settle()
        else:
            self._conductor.on_end(self._our_ids[trial_id])

    def settle(self) -> None:
        """Tells the conductor of trials that ended with an error, as soon as nothing of them runs any more.

        A holder can die, and its trial still be in its engine, at work on an evaluation.
        """
        for trial_id in [trial_id for trial_id in self._leaving if self._engines.has_left(trial_id)]:
            self._leaving.remove(trial_id)
            self._conductor.on_end(trial_id, died=True)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study and the records are on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore; see `save`."""


class _Quiet(_StaysHere, TrialProgressCallback):  # type: ignore[misc]
    """In place of Tune's own, which prints a line for some trials at whatever verbosity."""

    def log_result(self, trial: Trial, result: dict[str, Any], error: bool = False) -> None:
        """The conductor's listener tells of it."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The same."""


class _Scheduler(_StaysHere, FIFOScheduler):  # type: ignore[misc]
    """Hands every evaluation to the conductor, and its word back."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor
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
        said = Path(trial.error_file).read_text(errors="replace")
        if self.disk_trouble is None and says_disk_full(said):
            self.disk_trouble = said.strip().splitlines()[-1]
            self._conductor.interrupt()
        if UNSEEN in said:
            logger.warning("%s", said.strip().splitlines()[-1])
        super().on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Tune calls this for every report of a trial."""
        point = EvalPoint(**{name: result[name] for name in _POINT_FIELDS})
        goes_on = self._conductor.on_eval(trial.config["trial_id"], point)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


class _Stopper(_StaysHere, Stopper):  # type: ignore[misc]
    """Ends everything at once when the conductor says so."""

    def __init__(self, conductor: Conductor, searcher: _Searcher, engines: Engines) -> None:
        self._conductor = conductor
        self._searcher = searcher
        self._engines = engines

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Single trials are the scheduler's affair."""
        return False

    def stop_all(self) -> bool:
        """Tune asks several times a second."""
        self._searcher.settle()
        hung = self._engines.restart_hung()
        if hung:
            logger.warning("an engine hangs and is started again; in it were trials %s", ", ".join(hung))
        if self._conductor.must_stop:
            # Tune waits for holders to end, and they wait for their trials.
            self._engines.free_all_slots()
            return True
        self._conductor.tidy()
        return False


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
