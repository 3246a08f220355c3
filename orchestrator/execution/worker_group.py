"""Worker group: two or more resident processes that train each trial together, started by Ray's TorchTrainer.

A TorchTrainer per trial would take most of a minute before the first step, for new processes, their imports, the
process group and the base model. So one TorchTrainer runs all trials of a search, one after another.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.channel import Worker
from orchestrator.execution.group_queue import GroupQueue
from trials.cli import quiet_libraries
from trials.console.logs import redirect_output
from trials.console.troubles import TROUBLES

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from orchestrator.execution.trial_runner import TrialRunner
    from trials.records.trial_dir import EvalPoint
    from trials.training.training_run import Decision

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
_LAST_WORDS_SECONDS = 3 * _BEAT_SECONDS
"""Seconds for the ranks to learn that the queue is closed, and to write where they hang."""
_FIT_SECONDS = 20.0
"""Seconds for TorchTrainer to notice that its ranks have ended, and to release their resources."""
_QUIET = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in a recipe may be relative
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}


@dataclass(frozen=True)
class WorkerGroupSpec:
    """Settings that are the same for every process of a group."""

    ranks: int
    on_gpu: bool
    cpu_threads: int | None
    storage: Path
    """Folder for Ray Train's own state."""
    logs: Path | None = None
    """Folder for what the processes write to stdout and stderr; None: Ray handles it."""

    def keep_output(self, process: str) -> None:
        """Redirect the calling process's output to a file of this name in `logs`, if there is one."""
        if self.logs is not None:
            redirect_output(self.logs / f"{process}.log")


class WorkerGroup(GroupQueue, Worker):
    """Group queue as a Ray actor. When a rank's process ends, all end, this one too; Ray restarts the actor."""

    def __init__(self, group: WorkerGroupSpec, name: str) -> None:
        quiet_libraries()
        group.keep_output(name)
        super().__init__(group.ranks)
        self._group, self._name = group, name
        self._workers: dict[int, Any] = {}
        self._trainer = threading.Thread(target=self._fit, daemon=True)
        self._trainer.start()

    def ready(self) -> int:
        """Return the process id."""
        return os.getpid()

    def enter(self, rank: int, worker: Any) -> None:
        """Register a rank, which runs in the Ray actor `worker`."""
        self._workers[rank] = worker
        self.heartbeat(rank, None)

    def leave(self) -> None:
        """End the ranks, those at once that do not end themselves, and end this process when their GPUs are free."""
        self.close()
        self._trainer.join(_LAST_WORDS_SECONDS)
        for worker in self._workers.values():
            ray.kill(worker)
        self._trainer.join(_FIT_SECONDS)
        os._exit(1)

    def _fit(self) -> None:
        try:
            self._trainer_of_ranks().fit()
        except Exception:
            logger.exception("the processes of a group have ended")
        os._exit(1)

    def _trainer_of_ranks(self) -> TorchTrainer:
        # Imported here, because it loads torch, which the session's process does not need.
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        os.environ.update(_QUIET)
        group, queue = self._group, ray.get_runtime_context().current_actor
        resources = {"GPU": 1.0} if group.on_gpu else {"CPU": 0.01}
        scaling = ScalingConfig(num_workers=group.ranks, use_gpu=group.on_gpu, resources_per_worker=resources)
        run = RunConfig(name=f"group-{os.getpid()}-{time.time_ns()}", storage_path=str(group.storage))
        told = {"queue": queue, "group": group, "name": self._name}
        return TorchTrainer(rank_main, train_loop_config=told, scaling_config=scaling, run_config=run)


def rank_main(config: Mapping[str, Any]) -> None:
    """Run tasks of the group queue, one after another; every rank's main function, called by TorchTrainer."""
    from orchestrator.execution.trial_runner import TrialRunner
    from trials.system.distributed import joined_process_group

    quiet_libraries()
    queue, group = config["queue"], config["group"]
    with joined_process_group() as ranks:
        group.keep_output(f"{config['name']}-rank-{ranks.rank}")
        runner = TrialRunner(group.cpu_threads, ranks)
        ray.get(queue.enter.remote(ranks.rank, ray.get_runtime_context().current_actor))
        threading.Thread(target=_beat, args=(queue, ranks.rank, runner), daemon=True).start()
        number = 0
        while (task := ray.get(queue.next_task.remote(number))) is not None:
            number, request = task
            error, has_lost_gpu = _run(queue, number, request, runner)
            ray.get(queue.finish.remote(number, ranks.rank, error))
            if has_lost_gpu or runner.is_unusable:
                os._exit(1)
            number += 1


def _run(queue: Any, number: int, request: TrialRequest, runner: TrialRunner) -> tuple[str | None, bool]:
    """Run a trial; return the traceback if it failed, and whether this process must end."""
    from orchestrator.execution.trial_runner import gpu_is_unusable
    from trials.training.outcome import TrialInterrupted
    from trials.training.training_run import Decision

    called_off = queue.wait_cancelled.remote(number)

    def on_eval(point: EvalPoint) -> Decision:
        troubles = TROUBLES.pop_unreported()
        if troubles:
            queue.warn.remote(number, troubles)
        return Decision.CONTINUE if ray.get(queue.report.remote(number, point)) else Decision.STOP

    def is_cancelled() -> bool:
        return bool(ray.wait([called_off], timeout=0)[0])

    def on_log(figures: Mapping[str, float]) -> None:
        queue.log.remote(number, dict(figures))

    try:
        runner.run(request, on_eval, is_cancelled, on_log)
    except Exception as problem:
        # An interrupted trial has left collective operations in which the other ranks still wait.
        return traceback.format_exc(), gpu_is_unusable(problem) or isinstance(problem, TrialInterrupted)
    return None, False


def _beat(queue: Any, rank: int, runner: TrialRunner) -> None:
    from orchestrator.execution.trial_runner import end_hung_process

    is_closed = False
    while not is_closed:
        time.sleep(_BEAT_SECONDS)
        with suppress(RayError):
            is_closed = ray.get(queue.heartbeat.remote(rank, runner.seconds_since_progress()))
    end_hung_process()
