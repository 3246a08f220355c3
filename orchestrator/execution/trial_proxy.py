"""Trial proxy: a light Ray Tune process that passes a worker's evaluations to Tune, and Tune's decisions back."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import ray
from ray import tune

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.channel import Finished, LoggedMetrics, ReportingFailed
from orchestrator.execution.reporting import REQUEST_KEY, report_of, tracked
from trials.console.logs import trial_log
from trials.tracking.trial_run import figures

_READY_SECONDS = 300.0
"""Seconds for a worker's process to start, without the base model, which is loaded later."""


class TrialFailedRemotely(Exception):
    """Error that ended a trial in its worker; the message is the traceback from there."""


def run_trial_proxy(config: dict[str, Any]) -> None:
    """Run one trial in the worker that its request names; `config` is Ray Tune's, and contains the request.

    To stop the trial, Tune raises SystemExit in `tune.report`. It has to reach Tune, so that this process is reused;
    `orchestrator.execution.worker_pool` stops the trial in the worker.
    Raises `TrialFailedRemotely` if the trial failed, and Ray's own error if the worker's process ended.
    """
    request: TrialRequest = config[REQUEST_KEY]
    worker, trial_id = ray.get_actor(request.worker), request.trial_id
    # Ray restarts a worker whose process ended, unless its machine is gone. The call of `ready` may be retried; that of
    # `begin` may not, because it could start the trial twice.
    ray.get(worker.ready.options(max_task_retries=-1).remote(), timeout=_READY_SECONDS)
    ray.get(worker.begin.remote(request))
    troubles: dict[str, str] = {}
    log_file = trial_log(request.folder) if request.remote is None else nullcontext()
    with log_file, tracked(request) as log:
        while not isinstance(message := ray.get(worker.next_message.remote(trial_id)), Finished):
            if isinstance(message, LoggedMetrics):
                log(message.figures)
                continue
            if isinstance(message, ReportingFailed):
                troubles.update(message.troubles)
                continue
            log(figures(message))
            tune.report(report_of(message, troubles))
            worker.resume.remote(trial_id)
    if message.error is not None:
        raise TrialFailedRemotely(message.error)
