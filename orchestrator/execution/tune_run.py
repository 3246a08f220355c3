"""Starts or joins Ray, plans the placement, and runs Ray Tune until the controller has no more trials."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import RunConfig, TuneConfig
from ray.tune.error import TuneError
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

from orchestrator.controller.controller import SearchController
from orchestrator.execution.trial_proxy import run_trial_proxy
from orchestrator.execution.trial_task import run_trial_task
from orchestrator.execution.tune_adapters import (
    QuietProgress,
    SchedulerAdapter,
    SearcherAdapter,
    StopperAdapter,
    request_of,
)
from orchestrator.execution.worker_pool import WorkerPool, cores_of_nodes, gpus_of_nodes
from orchestrator.planning.placement import plan_placement
from orchestrator.ray_setup.address import named_cluster
from orchestrator.ray_setup.start import surroundings
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from trials.errors import DiskFull, InputError, SearchBroken, first_line
from trials.system.gpus import ORDER, gpu_count

# A stopped trial's thread may have to finish its W&B run before its process can take the next trial.
_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # _interrupts handles SIGINT
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial's folder has its metrics and TensorBoard events already
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # we resume from the run folder; Tune's own snapshots race with their clean-up
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output keeps quiet when it's told to
}
_SECRETS = frozenset(name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_"))
"""Credentials that Tune would copy into the runtime environment of trials' processes."""
_PROXY_CPUS = 0.01


@contextmanager
def ray_session(*, dashboard: bool, folder: Path | None = None) -> Iterator[str | None]:
    """Start Ray, or join a running cluster; yield the dashboard's address, None if there is none.

    `folder` is for Ray's files (`orchestrator.ray_setup.start.surroundings`). Raises `SearchBroken` if Ray cannot be
    started or joined.
    """
    os.environ.update(_ENVIRONMENT)
    # Ray logs these values in clear text. A local Ray's processes inherit them; on a cluster every node has its own.
    ENV_VARS_TO_PROPAGATE.difference_update(_SECRETS)
    with surroundings(folder):
        yield from _ray(dashboard=dashboard)


def _ray(*, dashboard: bool) -> Iterator[str | None]:
    try:
        context = ray.init(include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR, **_gpus())
    except Exception as error:  # Ray's parts raise many kinds
        raise SearchBroken(f"Ray can't be started or joined: {first_line(error)}") from error
    # Tune logs a traceback for every trial whose process dies. It is in RUN/ray too, and the controller shows a notice.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else None
    finally:
        ray.shutdown()


def _gpus() -> dict[str, int]:
    """Return the number of GPUs for a Ray that is started here, which finds none by itself if NVML is missing."""
    os.environ.setdefault(ORDER, "PCI_BUS_ID")
    return {"num_gpus": gpu_count()} if named_cluster() is None else {}


def placed(search: Search) -> Search:
    """Return the search with its placement on Ray's nodes: engines and slots. Raises `InputError` if no trial fits."""
    if search.ranks > 1 and not gpus_of_nodes():
        search = replace(search, gpus_per_trial=0)
    cores, each = list(cores_of_nodes().values()), gpus_of_nodes()
    if not cores and not search.gpus_per_trial:
        raise InputError("no node of the Ray cluster has a CPU for trials. Start Ray there without --num-cpus=0.")
    found = plan_placement(search, gpus=sum(each), cores=cores, gpus_each=min(each, default=1))
    if found.slots == 0:
        raise InputError(
            f"a trial wants {search.gpus_per_trial} GPU(s), and the Ray cluster has {sum(each)}. Add some, or "
            "give a smaller --gpus-per-trial."
        )
    return replace(search, placement=found)


def run_tune(controller: SearchController, run: RunDir) -> None:
    """Run trials until the controller has no more, or stops them all. The search must have a placement.

    Raises `SearchBroken` if Ray Tune ends with an error of its own, `DiskFull` if trials cannot write to their disk.
    """
    search, placed = controller.search, controller.search.placement
    assert placed is not None
    engines = WorkerPool(search, placed, run.path / "ray", run.logs)
    searcher = SearcherAdapter(controller, run, engines)
    scheduler = SchedulerAdapter(controller, searcher)
    tuner = tune.Tuner(
        _trainable(search, placed),
        tune_config=TuneConfig(
            num_samples=-1,
            # Otherwise Tune would start the processes one after another, each waiting for the one before.
            max_concurrent_trials=placed.slots,
            search_alg=searcher,
            scheduler=scheduler,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: request_of(trial).segment,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run.path),
            verbose=0,
            stop=StopperAdapter(controller, searcher, engines),
            callbacks=[QuietProgress()],
        ),
    )
    with _interrupts(controller):
        try:
            tuner.fit()
        except (TuneError, RayError) as error:
            raise SearchBroken(f"Ray Tune gave up: {str(error).strip().splitlines()[-1]}") from error
        except Exception:
            # On a full disk Tune also fails on writes of its own.
            if scheduler.disk_trouble is None:
                raise
        finally:
            engines.close()
            controller.close()
    if scheduler.disk_trouble is not None:
        raise DiskFull(scheduler.disk_trouble)


def _trainable(search: Search, placed: Placement) -> Any:
    """Return the trainable for Tune: proxies if there are engines, which have the GPUs; else the trials themselves."""
    if placed.engines:
        return tune.with_resources(run_trial_proxy, {"cpu": _PROXY_CPUS})
    return tune.with_resources(run_trial_task, {"cpu": 1, "gpu": search.gpus_per_trial})


@contextmanager
def _interrupts(controller: SearchController) -> Iterator[None]:
    """Interrupt the controller on the first SIGINT or SIGTERM; later ones go to the earlier handlers."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        controller.interrupt()
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
