"""What Ray Tune knows of a trial in an engine: a light process that passes its evaluations on, and Tune's word back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import ray
from ray import tune

from orchestrator.conversation import Ended, Logged
from orchestrator.trial_copy import records_copy
from trials.config import TrialConfig
from trials.tracking import figures, wandb_run

_READY_SECONDS = 300.0
"""For an engine's process to start; the base model comes later."""


class FailedInEngine(Exception):
    """An error ended the trial in its engine; the message is the traceback from there."""


def hold_assignment(assignment: dict[str, Any]) -> None:
    """Runs one trial in the engine that `assignment` names; `orchestrator.tune_plugins` made it.

    Where Tune stops the trial it raises SystemExit in `tune.report`, which has to reach Tune for this process to be
    used again. The engine is told by `orchestrator.engines`.
    Raises `FailedInEngine` if the trial failed, and Ray's own error if the engine's process ended under it.
    """
    engine, trial_id = ray.get_actor(assignment["engine"]), assignment["trial_id"]
    # An engine whose process ended is started again, unless its machine is gone. Asking whether it's there may be
    # repeated, starting a trial not.
    ray.get(engine.ready.options(max_task_retries=-1).remote(), timeout=_READY_SECONDS)
    ray.get(engine.begin.remote(assignment))
    config = TrialConfig.model_validate_json(assignment["config"])
    # While it trains already: W&B may take seconds.
    with records_copy(assignment) as folder, wandb_run(folder, config, group=assignment["group"]) as log:
        while not isinstance(word := ray.get(engine.next_word.remote(trial_id)), Ended):
            if isinstance(word, Logged):
                log(word.figures)
                continue
            log(figures(word))
            tune.report(asdict(word))
            engine.go_on.remote(trial_id)
    if word.error is not None:
        raise FailedInEngine(word.error)
