"""Watches over a trial while it trains: evaluates it, records it, and decides whether it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.evaluation.answer_scorer import AnswerScorer
from trials.metrics.row_losses import RowLosses
from trials.records.checkpoints import Checkpoint
from trials.records.trial_dir import Ending, EndingKind, EvalPoint, TrialDir, read_trial
from trials.system.distributed import ALONE, ProcessGroup
from trials.system.timer import TrialTimer
from trials.training.early_stopping import divergence, patience_exhausted

if TYPE_CHECKING:
    from transformers import TrainerState


class Decision(Enum):
    """The one word that flows back to a trial after an evaluation."""

    CONTINUE = "go on"
    STOP = "stop"


OnEval = Callable[[EvalPoint], Decision]
OnLog = Callable[[Mapping[str, float]], None]
"""Takes figures by the names that transformers gives them in W&B, such as train/loss."""


OnRecord = Callable[[dict[str, float], bool], None]
"""Logs the figures of an evaluation by name, and then, if that is asked for, puts a whole checkpoint on disk."""


def never() -> bool:
    """Asked whether a trial is to stop: it isn't, unless an evaluation's answer says so."""
    return False


def unheard(figures: Mapping[str, float]) -> None:
    """Told what a trial logs: nobody wants to know."""


@dataclass(frozen=True)
class TrainingRun:
    """What `run_trial` was given, and the watch that began to run with it."""

    config: TrialConfig
    data: TrialData
    folder: TrialDir
    on_eval: OnEval
    stop_at: float
    checkpoint: Checkpoint | None
    timer: TrialTimer
    is_called_off: Callable[[], bool] = never
    """Whether nobody waits for the trial any more; the engine asks after every optimizer step, from its own thread."""
    on_log: OnLog = unheard
    """Told by the engine what it logs between evaluations: the training loss, the learning rate."""
    ranks: ProcessGroup = ALONE
    """The processes that train this trial: all of them ask the same questions in the same order."""

    def time_is_over(self) -> bool:
        """Whether training has to end."""
        return self.ranks.any(time.time() >= self.stop_at)

    def has_been_called_off(self) -> bool:
        """What `is_called_off` says to any of the processes."""
        return self.ranks.any(self.is_called_off())

    def ask(self, point: EvalPoint) -> Decision:
        """What `on_eval` says to the first of the processes."""
        return self.ranks.on_rank_zero(lambda: self.on_eval(point))

    @property
    def is_sharded(self) -> bool:
        """Whether the processes share the base's layers, each of which all of them must pass together."""
        return self.config.machine.fsdp and self.ranks.world_size > 1

    @property
    def base_eval_loss(self) -> float | None:
        """Of the untrained base; None if neither the checkpoint nor the config knows it."""
        return self.config.base_eval_loss if self.checkpoint is None else self.checkpoint.progress.base_eval_loss

    def points_so_far(self) -> Sequence[EvalPoint]:
        """Evaluations before the checkpoint that the trial goes on from."""
        return () if self.checkpoint is None else read_trial(self.folder.path).points


@dataclass(frozen=True)
class TrainProgress:
    """Where a trial stands after an optimizer step."""

    step: int
    last_step: int
    """Of a full trial."""
    tokens_seen: int
    train_loss: float | None
    """As logged last, in nats per token; None: not logged yet, or not finite."""


def progress_of(state: TrainerState) -> TrainProgress:
    """As transformers' state of a trial tells it, which the engine keeps as well."""
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    latest = losses[-1] if losses and math.isfinite(losses[-1]) else None
    return TrainProgress(state.global_step, state.max_steps, int(state.num_input_tokens_seen), latest)


class TrainableModel(Protocol):
    """The adapter that a trial trains, whoever trains it."""

    def losses(self) -> RowLosses:
        """Of the eval rows, as it is now."""

    def save(self, path: Path) -> None:
        """Writes it into a folder in PEFT's format."""

    def scored(self, scorer: AnswerScorer, point: EvalPoint, losses: RowLosses) -> EvalPoint:
        """What `AnswerScorer.scored` makes of the adapter as it is now."""


class EvaluationLoop:
    """Evaluates a trial, records it, and decides with the callback whether it goes on."""

    def __init__(
        self, job: TrainingRun, trained_model: TrainableModel, scorer: AnswerScorer, base_loss: float, ending: Ending
    ) -> None:
        self._job = job
        self._settings = job.config.evaluation
        self._model = trained_model
        self._scorer = scorer
        self._base_loss = base_loss
        self._points = list(job.points_so_far())
        self.ending: Ending | None = ending
        """How the trial ends if nothing changes it; None once the callback has said stop."""

    def evaluate(self, moment: TrainProgress, on_record: OnRecord) -> bool:
        """Whether the training ends with it; `on_record` is called once it's on record, before anybody is asked."""
        self._job.timer.stop_training()
        losses = self._model.losses()
        diverged = divergence(losses.mean, self._base_loss, self._settings.divergence_factor)
        if diverged is not None and not math.isfinite(losses.mean):
            self.ending = diverged
            return True
        point = self._record(losses, moment, is_scored=diverged is None)
        goes_on = diverged is None and moment.step < moment.last_step
        score = {} if point.score is None else {"eval_score": point.score}
        on_record({"eval_loss": point.eval_loss, **score}, goes_on and self._job.config.machine.checkpoint_evaluations)
        is_over = self._evaluate(point, moment, diverged)
        self._job.timer.start_training()
        return is_over

    def _record(self, losses: RowLosses, moment: TrainProgress, *, is_scored: bool) -> EvalPoint:
        """Puts the evaluation on disk, the adapter before its score: time may be over while answers are made."""
        point = self._point(losses.mean, moment)
        self._points.append(point)
        self._job.folder.keep_if_best(point, losses, self._model.save)
        if is_scored and self._score_is_due(point, moment):
            point = self._model.scored(self._scorer, point, losses)
        self._job.folder.log(point)
        return point

    def _score_is_due(self, point: EvalPoint, moment: TrainProgress) -> bool:
        is_last = moment.step >= moment.last_step or patience_exhausted(self._points, self._settings) is not None
        before = self._points[-2].tokens_seen if len(self._points) > 1 else 0
        # When time is over, what's left of it is kept for the export.
        return self._scorer.is_due(point.tokens_seen, before, is_last=is_last) and not self._job.time_is_over()

    def _evaluate(self, point: EvalPoint, moment: TrainProgress, diverged: Ending | None) -> bool:
        if diverged is not None:
            # The callback isn't asked: a trial that diverged must not be taken for one that merely fell behind.
            self.ending = diverged
            return True
        if self._job.ask(point) is Decision.STOP:
            self.ending = None
            return True
        early = self._ends_early(moment)
        self.ending = early or self.ending
        return early is not None

    def _ends_early(self, moment: TrainProgress) -> Ending | None:
        if moment.step >= moment.last_step:
            return None
        if self._job.time_is_over():
            return Ending(EndingKind.PRUNED, "the time for training was over")
        return patience_exhausted(self._points, self._settings)

    def _point(self, eval_loss: float, moment: TrainProgress) -> EvalPoint:
        training_seconds = self._job.timer.training_seconds
        return EvalPoint(
            step=moment.step,
            tokens_seen=moment.tokens_seen,
            eval_loss=eval_loss,
            best_eval_loss=min([eval_loss, *(point.eval_loss for point in self._points)]),
            seconds=self._job.timer.seconds,
            train_loss=moment.train_loss,
            tokens_per_second=moment.tokens_seen / training_seconds if training_seconds else None,
            ranks=self._job.ranks.world_size,
        )
