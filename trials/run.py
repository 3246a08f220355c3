"""One trial outside a search, in this process: in the engine if it can train it, else in TRL."""

from __future__ import annotations

import logging
from dataclasses import replace

from trials.config import TrialConfig
from trials.engine.support import unsupported_reason
from trials.records.trial_dir import Ending, EvalPoint
from trials.system.torch_setup import use_threads
from trials.tracking.trial_run import figures, wandb_run, without_wandb
from trials.training.training_run import Decision, TrainingRun, TrialBackend
from trials.trl.backend import TrlBackend

_log = logging.getLogger(__name__)


def run_single_trial(run: TrainingRun, group: str) -> Ending | None:
    """Run a trial in the engine or in TRL, inside a W&B run in `group` where W&B is wanted.

    Returns what `trials.training.training_run.TrialBackend.run` does.
    """
    use_threads(run.config.machine)
    config = run.config if run.ranks.is_first else without_wandb(run.config)
    with wandb_run(run.folder.path, config, group=group) as log:

        def log_and_ask(point: EvalPoint) -> Decision:
            log(figures(point))
            return run.on_eval(point)

        backend = _backend(config, run.ranks.world_size)
        try:
            return backend.run(replace(run, config=config, on_eval=log_and_ask, on_log=log))
        finally:
            backend.close()


def _backend(config: TrialConfig, processes: int) -> TrialBackend:
    if not _engine_runs(config, processes):
        return TrlBackend()
    from trials.engine.engine import Engine

    return Engine(config.model, config.machine)


def _engine_runs(config: TrialConfig, processes: int) -> bool:
    """Return whether the engine trains this trial; log the reason where it was asked for and can't."""
    if config.machine.engine == "trl":
        return False
    reason = unsupported_reason(config, processes)
    if reason is not None:
        _log.info("TRL's trainer runs this trial: %s", reason)
    return reason is None
