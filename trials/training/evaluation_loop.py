"""Evaluation of a trial while it trains: records it, and decides whether the trial continues."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trials.evaluation.answer_scorer import AnswerScorer
from trials.metrics.row_losses import RowLosses
from trials.records.trial_dir import Ending, EvalPoint
from trials.state import TrialState
from trials.training.early_stopping import divergence, patience_begins, patience_exhausted
from trials.training.training_run import Decision, TrainingRun

if TYPE_CHECKING:
    from transformers import TrainerState


OnRecord = Callable[[dict[str, float], bool], None]
"""Logs the values of an evaluation by name; then, if the flag is true, writes a whole checkpoint."""


@dataclass(frozen=True)
class TrainProgress:
    """Progress of a trial after an optimizer step."""

    step: int
    last_step: int
    """Number of optimizer steps of a full trial."""
    tokens_seen: int
    train_loss: float | None
    """Last value logged, in nats per token; None: none was logged yet, or it isn't finite."""


def progress_of(state: TrainerState) -> TrainProgress:
    """Return the progress from transformers' state of a trial, which the engine keeps as well."""
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    latest = losses[-1] if losses and math.isfinite(losses[-1]) else None
    return TrainProgress(state.global_step, state.max_steps, int(state.num_input_tokens_seen), latest)


class TrainableModel(Protocol):
    """Model that a trial trains or evaluates, in either backend."""

    def losses(self) -> RowLosses:
        """Return the loss of every eval row."""

    def save(self, path: Path) -> None:
        """Write the adapter into a folder in PEFT's format."""

    def scored(self, scorer: AnswerScorer, point: EvalPoint, losses: RowLosses) -> EvalPoint:
        """Return what `AnswerScorer.scored` gives for the model."""


class EvaluationLoop:
    """Evaluation of one trial, its record, and the decision whether it continues, which the callback shares."""

    def __init__(
        self, run: TrainingRun, trained_model: TrainableModel, scorer: AnswerScorer, base_loss: float, ending: Ending
    ) -> None:
        self._run = run
        self._settings = run.config.evaluation
        self._model = trained_model
        self._scorer = scorer
        self._base_loss = base_loss
        self._points = list(run.points_so_far())
        self.ending: Ending | None = ending
        """Ending of the trial unless something changes it; None once the callback has said stop."""

    def evaluate(self, moment: TrainProgress, on_record: OnRecord) -> bool:
        """Evaluate the trial, and return whether training ends with it.

        `on_record` is called once the evaluation is on disk, before the callback is asked. It is not called if the loss
        isn't finite.
        """
        self._run.timer.stop_training()
        losses = self._model.losses()
        diverged = divergence(losses.mean, self._base_loss, self._settings.divergence_factor)
        if diverged is not None and not math.isfinite(losses.mean):
            self.ending = diverged
            return True
        point = self._record(losses, moment, is_scored=diverged is None)
        # A trial that can be extended may go on after its last step as well.
        is_open_ended = self._run.config.hyperparameters.is_open_ended
        may_go_on = diverged is None and (moment.step < moment.last_step or is_open_ended)
        score = {} if point.score is None else {"eval_score": point.score}
        on_record(
            {"eval_loss": point.eval_loss, **score}, may_go_on and self._run.config.machine.checkpoint_evaluations
        )
        is_over = self._evaluate(point, moment, diverged)
        self._run.timer.start_training()
        return is_over

    def _record(self, losses: RowLosses, moment: TrainProgress, *, is_scored: bool) -> EvalPoint:
        """Write the evaluation to disk, the adapter before its score: time may run out while answers are generated."""
        point = self._point(losses.mean, moment)
        self._points.append(point)
        self._run.folder.keep_if_best(point, losses, self._model.save)
        if is_scored and self._score_is_due(point, moment):
            point = self._model.scored(self._scorer, point, losses)
        self._run.folder.log(point)
        return point

    def _score_is_due(self, point: EvalPoint, moment: TrainProgress) -> bool:
        is_last = moment.step >= moment.last_step or self._patience_exhausted(moment) is not None
        before = self._points[-2].tokens_seen if len(self._points) > 1 else 0
        # When time for training is over, the rest is reserved for the export.
        return self._scorer.is_due(point.tokens_seen, before, is_last=is_last) and not self._run.time_is_over()

    def _evaluate(self, point: EvalPoint, moment: TrainProgress, diverged: Ending | None) -> bool:
        if diverged is not None:
            # The callback isn't asked: a trial that diverged must not be taken for one that merely fell behind.
            self.ending = diverged
            return True
        if self._run.ask(point) is Decision.STOP:
            self.ending = None
            return True
        early = self._ends_early(moment)
        self.ending = early or self.ending
        return early is not None

    def _ends_early(self, moment: TrainProgress) -> Ending | None:
        if moment.step >= moment.last_step:
            return None
        if self._run.time_is_over():
            if self._run.finishes_at_stop:
                return Ending(TrialState.FINISHED, "trained until the time was over")
            return Ending(TrialState.OUT_OF_TIME, "the time for training was over")
        return self._patience_exhausted(moment)

    def _patience_exhausted(self, moment: TrainProgress) -> Ending | None:
        begins = patience_begins(self._run.config.hyperparameters, moment.last_step)
        return patience_exhausted(self._points, self._settings, begins)

    def _point(self, eval_loss: float, moment: TrainProgress) -> EvalPoint:
        training_seconds = self._run.timer.training_seconds
        return EvalPoint(
            step=moment.step,
            tokens_seen=moment.tokens_seen,
            eval_loss=eval_loss,
            best_eval_loss=min([eval_loss, *(point.eval_loss for point in self._points)]),
            seconds=self._run.timer.seconds,
            train_loss=moment.train_loss,
            tokens_per_second=moment.tokens_seen / training_seconds if training_seconds else None,
            ranks=self._run.ranks.world_size,
        )
