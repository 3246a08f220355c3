"""What Ray Tune knows of a trial in an engine: a light process that passes its evaluations on, and Tune's word back."""

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
"""For an engine's process to start; the base model comes later."""


class TrialFailedRemotely(Exception):
    """An error ended the trial in its engine; the message is the traceback from there."""


def run_trial_proxy(config: dict[str, Any]) -> None:
    """Run one trial in the worker that its request names; `config` is Ray Tune's, and holds the request.

    Where Tune stops the trial it raises SystemExit in `tune.report`, which has to reach Tune for this process to be
    used again. The engine is told by `orchestrator.execution.worker_pool`.
    Raises `TrialFailedRemotely` if the trial failed, and Ray's own error if the engine's process ended under it.
    """
    request: TrialRequest = config[REQUEST_KEY]
    engine, trial_id = ray.get_actor(request.worker), request.trial_id
    # An engine whose process ended is started again, unless its machine is gone. Asking whether it's there may be
    # repeated, starting a trial not.
    ray.get(engine.ready.options(max_task_retries=-1).remote(), timeout=_READY_SECONDS)
    ray.get(engine.begin.remote(request))
    troubles: dict[str, str] = {}
    log_file = trial_log(request.folder) if request.remote is None else nullcontext()
    with log_file, tracked(request) as log:
        while not isinstance(word := ray.get(engine.next_message.remote(trial_id)), Finished):
            if isinstance(word, LoggedMetrics):
                log(word.figures)
                continue
            if isinstance(word, ReportingFailed):
                troubles.update(word.troubles)
                continue
            log(figures(word))
            tune.report(report_of(word, troubles))
            engine.resume.remote(trial_id)
    if word.error is not None:
        raise TrialFailedRemotely(word.error)
