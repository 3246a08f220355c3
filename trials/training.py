"""Runs one trial with TRL's `SFTTrainer`: the reference that every faster way to run a trial must equal.

Nothing here knows who launched it. The launcher hands in a folder and one callback; after every evaluation the
callback answers go on or stop, and whoever says stop records why.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import torch
from transformers import set_seed

from trials.checkpoints import Checkpoint, CheckpointWriter
from trials.config import Machine, TrialConfig
from trials.data import TrialData
from trials.evaluation import evaluate_rows
from trials.memory import is_out_of_memory
from trials.model import attach_adapter, load_base
from trials.records import Ending, EndingKind, EvalPoint, TrialFolder
from trials.schedule import evaluation_tokens, full_length
from trials.scoring import Scorer
from trials.stopwatch import Stopwatch
from trials.supervisor import Job, OnEval, Supervisor
from trials.trainer import EvaluationTimes, build_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run_trial(
    config: TrialConfig,
    data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    folder: TrialFolder,
    on_eval: OnEval,
    stop_at: float = math.inf,
    checkpoint: Checkpoint | None = None,
) -> Ending | None:
    """Trains one adapter, and leaves its evaluations, best adapter and ending in `folder`.

    With a checkpoint it goes on from there, as if it had never stopped; `trials.rewinding.rewind` comes before that.
    `stop_at` is in seconds since the epoch; at that time the trial is evaluated once more and ends as pruned.
    Returns how the trial ended; None if the callback stopped it, who then writes the ending. Running out of memory
    is an ending; any other error is recorded as `failed` and raised.
    """
    stopwatch = Stopwatch()
    if checkpoint is not None:
        stopwatch = Stopwatch(checkpoint.progress.seconds, checkpoint.progress.training_seconds)
    try:
        ending = _train(Job(config, data, folder, on_eval, stop_at, checkpoint, stopwatch), tokenizer)
    except Exception as error:
        if not is_out_of_memory(error):
            _record_failure(folder, error)
            raise
        ending = Ending(EndingKind.OUT_OF_MEMORY, str(error).split("\n")[0])
    if ending is not None:
        folder.end(ending)
    return ending


def evaluate_base(
    config: TrialConfig, data: TrialData, tokenizer: PreTrainedTokenizerBase, folder: TrialFolder, on_eval: OnEval
) -> Ending:
    """Evaluates the base model without any adapter: what every trial has to beat. Errors are recorded and raised."""
    stopwatch = Stopwatch()
    try:
        base = load_base(config.model)
        losses = evaluate_rows(base, data.eval.rows, config.evaluation.batch_rows)
        point = EvalPoint(0, 0, losses.mean, losses.mean, stopwatch.seconds)
        folder.keep_if_best(point, losses, save_adapter=None)
        scorer = Scorer(config, data.eval, tokenizer, folder, stopwatch)
        if scorer.is_due(0, 0, is_last=True):
            point = scorer.scored(point, losses, base)
        folder.log(point)
    except Exception as error:
        _record_failure(folder, error)
        raise
    on_eval(point)
    ending = Ending(EndingKind.FINISHED, "the base model is evaluated, not trained")
    folder.end(ending)
    return ending


def use_threads(machine: Machine) -> None:
    """Limits torch's threads on a machine without a GPU, so that trials side by side don't fight for cores."""
    if machine.cpu_threads is not None and not torch.cuda.is_available():
        torch.set_num_threads(machine.cpu_threads)


def _record_failure(folder: TrialFolder, error: Exception) -> None:
    if not _process_is_exiting():
        folder.end(Ending(EndingKind.FAILED, f"{type(error).__name__}: {error}"))


def _process_is_exiting() -> bool:
    """Whether the interpreter is shutting down under a trial that runs in a thread, as under Ray.

    Files are closed under it then, and what it raises for that is no failure of its own: it was cut off.
    """
    return not threading.main_thread().is_alive()


def _train(job: Job, tokenizer: PreTrainedTokenizerBase) -> Ending | None:
    config, data, folder = job.config, job.data, job.folder.path
    base = load_base(config.model)
    base_loss = _base_eval_loss(job, base)
    set_seed(config.seed)
    model = attach_adapter(base, config.hyperparameters, config.model.revision)
    epoch = data.train.epoch
    length = full_length(config.hyperparameters, epoch)
    finished = Ending(EndingKind.FINISHED, f"trained for all its {length.steps} steps")
    scorer = Scorer(config, data.eval, tokenizer, job.folder, job.stopwatch)
    supervisor = Supervisor(job, model, scorer, base_loss, finished)
    times = EvaluationTimes(evaluation_tokens(length.tokens, config.evaluation, epoch), job.time_is_over)
    checkpoints = CheckpointWriter(folder, job.stopwatch, base_loss, config.machine.keep_checkpoints)
    steps_done = job.checkpoint.step if job.checkpoint else 0
    trainer = build_trainer(
        model, tokenizer, data.train, config, length, supervisor.evaluate, times, folder, checkpoints, steps_done
    )
    job.stopwatch.start_training()
    if job.checkpoint is None:
        trainer.train()
    elif steps_done < length.steps:  # it may have died between its last checkpoint and its ending
        trainer.go_on_from(job.checkpoint)
    return supervisor.ending


def _base_eval_loss(job: Job, base: PreTrainedModel) -> float:
    """Of the untrained base, evaluated only if neither the config nor the checkpoint knows it."""
    if job.checkpoint is not None:
        return job.checkpoint.progress.base_eval_loss
    if job.config.base_eval_loss is not None:
        return job.config.base_eval_loss
    return evaluate_rows(base, job.data.eval.rows, job.config.evaluation.batch_rows).mean
