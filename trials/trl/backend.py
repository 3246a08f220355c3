"""Training of one trial with TRL's `SFTTrainer`: the reference that every faster backend must equal.

Nothing here depends on the launcher, which passes a folder and one callback. After every evaluation the callback
answers continue or stop. If it says stop, its own side records why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import set_seed

from trials.data.tokenization import TokenizedRow
from trials.evaluation.answer_scorer import AnswerScorer
from trials.evaluation.eval_loss import evaluate_rows, shared_losses
from trials.metrics.row_losses import RowLosses
from trials.model.loading import attach_adapter, load_base
from trials.records.checkpoints import CheckpointWriter
from trials.records.trial_dir import Ending, EvalPoint
from trials.schedule import evaluation_tokens, full_length
from trials.state import TrialState
from trials.system.distributed import ALONE, ProcessGroup
from trials.system.oom import is_out_of_memory
from trials.training.evaluation_loop import EvaluationLoop, progress_of
from trials.training.heartbeat import Heartbeat
from trials.training.outcome import evaluate_base_model, run_and_record
from trials.training.training_run import TrainingRun
from trials.training.weight_average import WeightAverage, average_of
from trials.trl.batch_size import BatchSizeFinder, free_memory
from trials.trl.trainer import EvaluationTimes, build_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TrlBackend:
    """Trainer of one trial at a time, each with a base model of its own.

    Any forward pass of any model is a heartbeat: in training, in evaluation, and in generating answers.
    """

    has_ended = False

    def __init__(self) -> None:
        self._heartbeat = Heartbeat()

    def run(self, run: TrainingRun) -> Ending | None:
        """Train one trial; see `trials.training.training_run.TrialBackend`."""
        with self._watched(run) as watched:
            return run_and_record(watched, lambda: _train_as_it_fits(watched))

    def evaluate_base(self, run: TrainingRun) -> Ending:
        """Evaluate the base model; see `trials.training.training_run.TrialBackend`."""
        with self._watched(run) as watched:
            return evaluate_base_model(watched, lambda: _base_model(watched))

    def seconds_since_progress(self) -> float | None:
        """Return the seconds since the trial's last heartbeat; None: no trial runs, or it waits."""
        return self._heartbeat.seconds_since_progress()

    def close(self) -> None:
        """Do nothing: no base model outlives its trial."""

    @contextmanager
    def _watched(self, run: TrainingRun) -> Iterator[TrainingRun]:
        # A trial that an error ended can have left its model in a reference cycle.
        free_memory()
        with self._heartbeat.working() as beat:
            # The backward pass may run modules again, in threads of autograd: they beat for the trial's thread.
            hook = register_module_forward_pre_hook(lambda *_: beat())
            try:
                yield run.resting_in(self._heartbeat)
            finally:
                hook.remove()


def _train_as_it_fits(run: TrainingRun) -> Ending | None:
    """Train with ever smaller micro-batches if memory runs out, each time from the newest checkpoint or the beginning.

    Several ranks find out together what fits, before they train. Ranks that shard the base can't, because every pass
    needs all of them. If memory runs out on one rank later, the others can't continue without it: raises
    `TrialInterrupted`.
    """
    finder = BatchSizeFinder(run)
    while True:
        try:
            return _train(finder)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if run.ranks.world_size > 1 and (finder.has_begun if run.is_sharded else finder.has_fitted):
                raise finder.cut_off() from None
            # Its frames hold the model, whose memory must be freed.
            error.__traceback__ = None
            if not finder.ran_out():
                raise


def _train(finder: BatchSizeFinder) -> Ending | None:
    run = finder.run
    config, data, folder = run.config, run.data, run.folder
    base = run.ranks.own(lambda: load_base(config.model))
    base_loss = _base_eval_loss(run, base)
    set_seed(config.seed)
    model = run.ranks.own(lambda: attach_adapter(base, config.hyperparameters, config.model.revision))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = run.ranks.own(lambda: average_of(learning, config.hyperparameters))
    epoch = data.train.epoch
    length = full_length(config.hyperparameters, epoch)
    finished = Ending(TrialState.FINISHED, f"trained for all its {length.steps} steps")
    # With a sharded base a rank can't generate without the others, so all ranks answer every row.
    scorer = AnswerScorer(config, data.eval, run.tokenizer, folder, run.timer, ALONE if run.is_sharded else run.ranks)
    trained_model = _HfModel(model, data.eval.rows, config.evaluation.batch_rows, run.ranks, run.is_sharded, average)
    supervisor = EvaluationLoop(run, trained_model, scorer, base_loss, finished)
    evaluations = evaluation_tokens(length.tokens, config.evaluation, epoch)
    times = EvaluationTimes(evaluations, run.time_is_over, run.has_been_called_off)
    checkpoints = CheckpointWriter(folder, run.timer, base_loss, config.machine.keep_checkpoints)
    steps_done = run.checkpoint.step if run.checkpoint else 0
    trainer = build_trainer(
        model,
        run.tokenizer,
        data.train,
        config,
        length,
        lambda state, on_record: supervisor.evaluate(progress_of(state), on_record),
        times,
        folder,
        checkpoints,
        steps_done,
        run.ranks,
        run.on_log,
    )
    trainer.keep_average(average)
    trainer.worst_rows, trainer.on_fitting = finder.worst_rows, finder.fits
    finder.begins()
    run.timer.start_training()
    if run.checkpoint is None:
        trainer.train()
    elif steps_done < length.steps:  # the trial may have died between its last checkpoint and its ending
        trainer.go_on_from(run.checkpoint)
    return None if times.was_called_off else supervisor.ending


@dataclass(frozen=True)
class _HfModel:
    """Model of transformers, or PEFT model on top of one."""

    model: Any
    rows: Sequence[TokenizedRow]
    batch_rows: int
    ranks: ProcessGroup
    is_sharded: bool = False
    average: WeightAverage | None = None
    """What is evaluated and saved in place of the model's own weights; None: those."""

    def losses(self) -> RowLosses:
        """Return the loss of every row."""
        with self._averaged():
            return self._losses()

    def save(self, path: Path) -> None:
        with self._averaged():
            self.model.save_pretrained(str(path), save_embedding_layers=False)

    def scored(self, scorer: AnswerScorer, point: EvalPoint, losses: RowLosses) -> EvalPoint:
        with self._averaged():
            return scorer.scored(point, losses, self.model)

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.in_place()

    def _losses(self) -> RowLosses:
        """Return the loss of every row.

        With a sharded base all ranks must run equally many passes, so some rows are evaluated twice.
        """
        if not self.is_sharded:
            return shared_losses(self.ranks, self.rows, lambda rows: evaluate_rows(self.model, rows, self.batch_rows))
        missing = -len(self.rows) % self.ranks.world_size
        found = shared_losses(
            self.ranks,
            [*self.rows, *[self.rows[-1]] * missing],
            lambda rows: evaluate_rows(self.model, rows, self.batch_rows, may_halve=False),
        )
        return found.first(len(self.rows))


def _base_eval_loss(run: TrainingRun, base: PreTrainedModel) -> float:
    """Return the untrained base's eval loss, evaluated only if neither config nor checkpoint has it."""
    known = run.base_eval_loss
    if known is not None:
        return known
    return _HfModel(base, run.data.eval.rows, run.config.evaluation.batch_rows, run.ranks).losses().mean


def _base_model(run: TrainingRun) -> _HfModel:
    base = run.ranks.own(lambda: load_base(run.config.model))
    return _HfModel(base, run.data.eval.rows, run.config.evaluation.batch_rows, run.ranks)
