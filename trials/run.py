"""One trial outside a search, in this process: in the engine if it can train it, else in TRL."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.engine.support import unsupported_reason
from trials.records.checkpoints import Checkpoint
from trials.records.trial_dir import Ending, EvalPoint, TrialDir
from trials.system.distributed import ALONE, ProcessGroup
from trials.system.torch_setup import use_threads
from trials.tracking.trial_run import figures, wandb_run, without_wandb
from trials.training.evaluation_loop import Decision, OnEval
from trials.trl.backend import run_trial

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


def run_single_trial(
    config: TrialConfig,
    data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    folder: TrialDir,
    on_eval: OnEval,
    *,
    group: str,
    checkpoint: Checkpoint | None = None,
    ranks: ProcessGroup = ALONE,
) -> Ending | None:
    """Run a trial in the engine or in TRL, inside a W&B run in `group` where W&B is wanted.

    Arguments and result are those of `trials.trl.backend.run_trial`.
    """
    use_threads(config.machine)
    if not ranks.is_first:
        config = without_wandb(config)
    with wandb_run(folder.path, config, group=group) as log:

        def log_and_ask(point: EvalPoint) -> Decision:
            log(figures(point))
            return on_eval(point)

        if not _engine_runs(config, ranks.world_size):
            return run_trial(
                config, data, tokenizer, folder, log_and_ask, checkpoint=checkpoint, ranks=ranks, on_log=log
            )
        from trials.engine.engine import Engine

        engine = Engine(config.model, config.machine, ranks)
        try:
            return engine.run_trial(config, data, tokenizer, folder, log_and_ask, checkpoint=checkpoint, on_log=log)
        finally:
            engine.close()


def _engine_runs(config: TrialConfig, processes: int) -> bool:
    """Return whether the engine trains this trial; log the reason where it was asked for and can't."""
    if config.machine.engine == "trl":
        return False
    reason = unsupported_reason(config, processes)
    if reason is not None:
        _log.info("TRL's trainer runs this trial: %s", reason)
    return reason is None
