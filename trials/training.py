"""Runs one trial with TRL's `SFTTrainer`: the reference that every faster way to run a trial must equal.

Nothing here knows who launched it. The launcher hands in a folder and one callback; after every evaluation the
callback answers go on or stop, and whoever says stop records why.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import TrainerState, set_seed

from trials.config import Machine, TrialConfig
from trials.data import TrialData
from trials.evaluation import evaluate_rows
from trials.losses import RowLosses
from trials.memory import is_out_of_memory
from trials.model import attach_adapter, load_base
from trials.records import Ending, EndingKind, EvalPoint, TrialFolder
from trials.schedule import Epoch, evaluation_tokens, full_length
from trials.scoring import Scorer
from trials.stopwatch import Stopwatch
from trials.trainer import EvaluationTimes, build_trainer
from trials.verdicts import divergence, lost_patience

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


class Decision(Enum):
    """The one word that flows back to a trial after an evaluation."""

    GO_ON = "go on"
    STOP = "stop"


OnEval = Callable[[EvalPoint], Decision]


def run_trial(
    config: TrialConfig,
    data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    folder: TrialFolder,
    on_eval: OnEval,
    stop_at: float = math.inf,
) -> Ending | None:
    """Trains one adapter, and leaves its evaluations, best adapter and ending in `folder`.

    `stop_at` is in seconds since the epoch; at that time the trial is evaluated once more and ends as pruned.
    Returns how the trial ended; None if the callback stopped it, who then writes the ending. Running out of memory
    is an ending; any other error is recorded as `failed` and raised.
    """
    try:
        ending = _train(_Job(config, data, folder, on_eval, stop_at), tokenizer)
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


@dataclass(frozen=True)
class _Job:
    """What `run_trial` was given, and the watch that began to run with it."""

    config: TrialConfig
    data: TrialData
    folder: TrialFolder
    on_eval: OnEval
    stop_at: float
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def time_is_over(self) -> bool:
        return time.time() >= self.stop_at


def _train(job: _Job, tokenizer: PreTrainedTokenizerBase) -> Ending | None:
    config, data = job.config, job.data
    base = load_base(config.model)
    base_loss = config.base_eval_loss
    if base_loss is None:
        base_loss = evaluate_rows(base, data.eval.rows, config.evaluation.batch_rows).mean
    set_seed(config.seed)
    model = attach_adapter(base, config.hyperparameters, config.model.revision)
    epoch = Epoch(len(data.train), data.train.tokens)
    length = full_length(config.hyperparameters, epoch)
    finished = Ending(EndingKind.FINISHED, f"trained for all its {length.steps} steps")
    scorer = Scorer(config, data.eval, tokenizer, job.folder, job.stopwatch)
    supervisor = _Supervisor(job, model, scorer, base_loss, finished)
    times = EvaluationTimes(evaluation_tokens(length.tokens, config.evaluation, epoch), job.time_is_over)
    trainer = build_trainer(model, tokenizer, data.train, config, length, supervisor.evaluate, times, job.folder.path)
    job.stopwatch.start_training()
    trainer.train()
    return supervisor.ending


class _Supervisor:
    """Evaluates a trial, records it, and decides with the callback whether it goes on."""

    def __init__(self, job: _Job, model: PeftModel, scorer: Scorer, base_loss: float, ending: Ending) -> None:
        self._job = job
        self._settings = job.config.evaluation
        self._model = model
        self._scorer = scorer
        self._base_loss = base_loss
        self._points: list[EvalPoint] = []
        self.ending: Ending | None = ending
        """How the trial ends if nothing changes it; None once the callback has said stop."""

    def evaluate(self, state: TrainerState) -> tuple[dict[str, float], bool]:
        """What the trainer is to log: losses in nats per token; and whether the training ends with it."""
        self._job.stopwatch.stop_training()
        losses = evaluate_rows(self._model, self._job.data.eval.rows, self._settings.batch_rows)
        diverged = divergence(losses.mean, self._base_loss, self._settings.divergence_factor)
        if diverged is not None and not math.isfinite(losses.mean):
            self.ending = diverged
            return {"eval_loss": losses.mean}, True
        point = self._record(losses, state, is_scored=diverged is None)
        is_over = self._judge(point, state, diverged)
        self._job.stopwatch.start_training()
        score = {} if point.score is None else {"eval_score": point.score}
        return {"eval_loss": point.eval_loss, **score}, is_over

    def _record(self, losses: RowLosses, state: TrainerState, *, is_scored: bool) -> EvalPoint:
        """Puts the evaluation on disk, the adapter before its score: time may be over while answers are made."""
        point = self._point(losses.mean, state)
        self._points.append(point)
        self._job.folder.keep_if_best(point, losses, self._save_adapter)
        if is_scored and self._score_is_due(point, state):
            point = self._scorer.scored(point, losses, self._model)
        self._job.folder.log(point)
        return point

    def _score_is_due(self, point: EvalPoint, state: TrainerState) -> bool:
        is_last = state.global_step >= state.max_steps or lost_patience(self._points, self._settings) is not None
        before = self._points[-2].tokens_seen if len(self._points) > 1 else 0
        # When time is over, what's left of it is kept for the export.
        return self._scorer.is_due(point.tokens_seen, before, is_last=is_last) and not self._job.time_is_over()

    def _judge(self, point: EvalPoint, state: TrainerState, diverged: Ending | None) -> bool:
        if diverged is not None:
            # The callback isn't asked: a trial that diverged must not be taken for one that merely fell behind.
            self.ending = diverged
            return True
        if self._job.on_eval(point) is Decision.STOP:
            self.ending = None
            return True
        early = self._ends_early(state)
        self.ending = early or self.ending
        return early is not None

    def _ends_early(self, state: TrainerState) -> Ending | None:
        if state.global_step >= state.max_steps:
            return None
        if self._job.time_is_over():
            return Ending(EndingKind.PRUNED, "the time for training was over")
        return lost_patience(self._points, self._settings)

    def _point(self, eval_loss: float, state: TrainerState) -> EvalPoint:
        train_losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        training_seconds = self._job.stopwatch.training_seconds
        return EvalPoint(
            step=state.global_step,
            tokens_seen=int(state.num_input_tokens_seen),
            eval_loss=eval_loss,
            best_eval_loss=min([eval_loss, *(point.eval_loss for point in self._points)]),
            seconds=self._job.stopwatch.seconds,
            train_loss=train_losses[-1] if train_losses and math.isfinite(train_losses[-1]) else None,
            tokens_per_second=state.num_input_tokens_seen / training_seconds if training_seconds else None,
        )

    def _save_adapter(self, path: Path) -> None:
        self._model.save_pretrained(str(path), save_embedding_layers=False)
