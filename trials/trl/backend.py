"""Training of one trial with TRL's `SFTTrainer`: the reference that every faster backend must equal.

Nothing here depends on the launcher, which passes a folder and one callback. After every evaluation the callback
answers continue or stop. If it says stop, its own side records why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import set_seed

from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.data.tokenization import TokenizedRow
from trials.evaluation.answer_scorer import AnswerScorer
from trials.evaluation.eval_loss import evaluate_rows, shared_losses
from trials.metrics.row_losses import RowLosses
from trials.model.loading import attach_adapter, load_base
from trials.records.checkpoints import Checkpoint, CheckpointWriter, resumed_timer
from trials.records.trial_dir import Ending, EvalPoint, TrialDir
from trials.schedule import evaluation_tokens, full_length
from trials.state import TrialState
from trials.system.distributed import ALONE, ProcessGroup
from trials.system.oom import is_out_of_memory
from trials.training.evaluation_loop import EvaluationLoop, OnEval, OnLog, TrainingRun, progress_of, unheard
from trials.training.outcome import evaluate_base_model, run_and_record
from trials.trl.batch_size import BatchSizeFinder
from trials.trl.trainer import EvaluationTimes, build_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run_trial(
    config: TrialConfig,
    data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    folder: TrialDir,
    on_eval: OnEval,
    stop_at: float = math.inf,
    checkpoint: Checkpoint | None = None,
    ranks: ProcessGroup = ALONE,
    on_log: OnLog = unheard,
) -> Ending | None:
    """Train one adapter, and leave its evaluations, best adapter and ending in `folder`.

    With a checkpoint, training continues as if it had never stopped; `trials.records.rewind.rewind` must come first.
    `stop_at` is in seconds since the epoch; at that time the trial is evaluated once more and ends as pruned. `on_log`
    receives what is logged between evaluations. Returns how the trial ended; None if the callback stopped it, whose
    side then writes the ending. Running out of memory is an ending; any other error is recorded as `failed` and raised.
    """
    job = TrainingRun(
        config, data, folder, on_eval, stop_at, checkpoint, resumed_timer(checkpoint), on_log=on_log, ranks=ranks
    )
    return run_and_record(folder, lambda: _train_as_it_fits(job, tokenizer), ranks)


def evaluate_base(
    config: TrialConfig,
    data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    folder: TrialDir,
    on_eval: OnEval,
    ranks: ProcessGroup = ALONE,
) -> Ending:
    """Evaluate the base model without an adapter, the baseline of all trials. Errors are recorded and raised."""
    settings = config.evaluation
    return evaluate_base_model(
        lambda: _HfModel(ranks.own(lambda: load_base(config.model)), data.eval.rows, settings.batch_rows, ranks),
        config,
        data,
        tokenizer,
        folder,
        on_eval,
        ranks,
    )


def _train_as_it_fits(job: TrainingRun, tokenizer: PreTrainedTokenizerBase) -> Ending | None:
    """Train with ever smaller micro-batches if memory runs out, each time from the newest checkpoint or the beginning.

    Several ranks find out together what fits, before they train. Ranks that shard the base can't, because every pass
    needs all of them. If memory runs out on one rank later, the others can't continue without it: raises
    `TrialInterrupted`.
    """
    finder = BatchSizeFinder(job)
    while True:
        try:
            return _train(finder, tokenizer)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if job.ranks.world_size > 1 and (finder.has_begun if job.is_sharded else finder.has_fitted):
                raise finder.cut_off() from None
            # Its frames hold the model, whose memory must be freed.
            error.__traceback__ = None
            if not finder.ran_out():
                raise


def _train(finder: BatchSizeFinder, tokenizer: PreTrainedTokenizerBase) -> Ending | None:
    job = finder.job
    config, data, folder = job.config, job.data, job.folder
    base = job.ranks.own(lambda: load_base(config.model))
    base_loss = _base_eval_loss(job, base)
    set_seed(config.seed)
    model = job.ranks.own(lambda: attach_adapter(base, config.hyperparameters, config.model.revision))
    epoch = data.train.epoch
    length = full_length(config.hyperparameters, epoch)
    finished = Ending(TrialState.FINISHED, f"trained for all its {length.steps} steps")
    # With a sharded base a rank can't generate without the others, so all ranks answer every row.
    scorer = AnswerScorer(config, data.eval, tokenizer, job.folder, job.timer, ALONE if job.is_sharded else job.ranks)
    trained_model = _HfModel(model, data.eval.rows, config.evaluation.batch_rows, job.ranks, job.is_sharded)
    supervisor = EvaluationLoop(job, trained_model, scorer, base_loss, finished)
    times = EvaluationTimes(evaluation_tokens(length.tokens, config.evaluation, epoch), job.time_is_over)
    checkpoints = CheckpointWriter(folder, job.timer, base_loss, config.machine.keep_checkpoints)
    steps_done = job.checkpoint.step if job.checkpoint else 0
    trainer = build_trainer(
        model,
        tokenizer,
        data.train,
        config,
        length,
        lambda state, on_record: supervisor.evaluate(progress_of(state), on_record),
        times,
        folder,
        checkpoints,
        steps_done,
        job.ranks,
        job.on_log,
    )
    trainer.worst_rows, trainer.on_fitting = finder.worst_rows, finder.fits
    finder.begins()
    job.timer.start_training()
    if job.checkpoint is None:
        trainer.train()
    elif steps_done < length.steps:  # the trial may have died between its last checkpoint and its ending
        trainer.go_on_from(job.checkpoint)
    return supervisor.ending


@dataclass(frozen=True)
class _HfModel:
    """Model of transformers, or PEFT model on top of one."""

    model: Any
    rows: Sequence[TokenizedRow]
    batch_rows: int
    ranks: ProcessGroup
    is_sharded: bool = False

    def losses(self) -> RowLosses:
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

    def save(self, path: Path) -> None:
        self.model.save_pretrained(str(path), save_embedding_layers=False)

    def scored(self, scorer: AnswerScorer, point: EvalPoint, losses: RowLosses) -> EvalPoint:
        return scorer.scored(point, losses, self.model)


def _base_eval_loss(job: TrainingRun, base: PreTrainedModel) -> float:
    """Return the untrained base's eval loss, evaluated only if neither config nor checkpoint has it."""
    known = job.base_eval_loss
    if known is not None:
        return known
    return _HfModel(base, job.data.eval.rows, job.config.evaluation.batch_rows, job.ranks).losses().mean
