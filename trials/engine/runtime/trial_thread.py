"""Thread of one trial in the engine, from its first row to its ending; the step loop computes for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress

from transformers import TrainerState
from transformers.integrations import rewrite_logs

from trials.data.tokenization import TokenizedRow
from trials.engine.lora.adapter import Adapter
from trials.engine.memory.dry_run import DryRun
from trials.engine.optim.build import NamedParameters
from trials.engine.optim.flat import FlatOptimizer
from trials.engine.runtime.adapter_model import EngineModel
from trials.engine.runtime.adapter_trainer import AdapterTrainer
from trials.engine.runtime.checkpointing import first_state, read_checkpoint, write_checkpoint
from trials.engine.runtime.micro_batches import DivergedError
from trials.engine.runtime.step_loop import EngineClosedError, StepLoop
from trials.engine.runtime.training_log import TrainingLog
from trials.evaluation.answer_scorer import AnswerScorer
from trials.records.checkpoints import CheckpointWriter
from trials.records.memory_report import Attempt, MemoryReport, write_memory_report
from trials.records.trial_dir import Ending
from trials.schedule import TokenTriggers, checkpoint_steps, evaluation_tokens, full_length
from trials.state import TrialState
from trials.system.oom import is_out_of_memory
from trials.tracking.event_log import EventLog
from trials.training.evaluation_loop import EvaluationLoop, progress_of
from trials.training.row_order import RowOrder
from trials.training.training_run import TrainingRun
from trials.training.weight_average import average_of


class EngineTrial:
    """State of one trial, and the sequence of its training, evaluations and checkpoints."""

    def __init__(self, run: TrainingRun, loop: StepLoop, eval_rows: Sequence[TokenizedRow]) -> None:
        config, data, hp = run.config, run.data, run.config.hyperparameters
        self._run, self._config, self._loop = run, config, loop
        ranks = run.ranks
        self._length = full_length(hp, data.train.epoch)
        base_loss = self._base_eval_loss(eval_rows)
        frozen = loop.frozen
        self._adapter = ranks.own(
            lambda: loop.allocate(lambda: Adapter(frozen.targets, hp, config.seed, frozen.final_norm))
        )
        self._average = ranks.own(lambda: loop.allocate(lambda: average_of([self._adapter.flat], hp)))
        # The adapter as it is evaluated and kept.
        self._kept = self._adapter.with_weights(self._average.values[0]) if self._average else self._adapter
        self._memory = ranks.own(self._tried_out)
        self._flat_optimizer = self._make_optimizer()
        self._state = ranks.own(lambda: loop.allocate(self._first_state))
        log = (run.checkpoint.progress.log,) if run.checkpoint else ()
        self._log = TrainingLog(self._state, *log)
        self._trainer = AdapterTrainer(
            *(self._adapter, self._flat_optimizer, hp.max_grad_norm, self._rows_of_step()),
            *(self._state.global_step, ranks, self._average),
        )
        tokens = evaluation_tokens(self._length.tokens, config.evaluation, data.train.epoch)
        self._evaluations = TokenTriggers(tokens, self._tokens_seen)
        self._checkpoint_steps = checkpoint_steps(hp.effective_batch, config.machine)
        self._checkpoints = CheckpointWriter(run.folder, run.timer, base_loss, config.machine.keep_checkpoints)
        self._checkpointed: int | None = None
        """Step of the last checkpoint written by this run; None: none yet."""
        self._finished = Ending(TrialState.FINISHED, f"trained for all its {self._length.steps} steps")
        scorer = AnswerScorer(config, data.eval, run.tokenizer, run.folder, run.timer, ranks)
        trained_model = EngineModel(loop, config, eval_rows, self._kept, ranks)
        self._supervisor = EvaluationLoop(run, trained_model, scorer, base_loss, self._finished)

    def run(self) -> Ending | None:
        """Train to the end, and return the ending; None: the callback said stop, or the trial was called off."""
        try:
            return self._train()
        finally:
            with suppress(EngineClosedError):
                self._record_oom()

    def _record_oom(self) -> None:
        """Add the attempts that ran out of memory during training to the memory report in the trial's folder."""
        ran_out = self._trainer.oom_tokens
        if ran_out:
            now = self._loop.memory_report(id(self._run))
            tried = [
                Attempt(max(1, tokens // self._run.data.train.longest), tokens, self._memory.recomputation, fits=False)
                for tokens in ran_out
            ]
            write_memory_report(self._run.folder, now.after([*self._memory.tried, *tried]))

    def _train(self) -> Ending | None:
        with EventLog(self._run.folder, self._state.global_step) as events:
            while self._state.global_step < self._length.steps:
                self._run.timer.start_training()
                try:
                    self._train_on()
                except DivergedError:
                    self._note_steps(events)
                    return self._diverged()
                if not self._note_steps(events):
                    return self._diverged()
                if self._run.has_been_called_off():
                    return None
                if self._evaluation_is_due() and self._evaluate(events):
                    break
                if self._checkpoint_is_due(self._state.global_step):
                    self._write_checkpoint()
        return self._supervisor.ending

    def _train_on(self) -> None:
        """Train to the next evaluation or checkpoint, or to the end."""
        try:
            self._loop.wait_for(self._loop.train(self._trainer, self._is_there))
        except Exception as error:
            if is_out_of_memory(error):
                self._run.ranks.fail(error)
            raise

    @property
    def _tokens_seen(self) -> int:
        return int(self._state.num_input_tokens_seen)

    def _is_there(self, step: int, tokens: int) -> bool:
        return (
            step >= self._length.steps
            or self._evaluations.is_due(self._tokens_seen + tokens)
            or self._checkpoint_is_due(step)
            or self._run.time_is_over()
            or self._run.has_been_called_off()
        )

    def _checkpoint_is_due(self, step: int) -> bool:
        return self._checkpoint_steps is not None and step % self._checkpoint_steps == 0

    def _evaluation_is_due(self) -> bool:
        is_reached = self._evaluations.advance(self._tokens_seen)
        return is_reached or self._state.global_step >= self._length.steps or self._run.time_is_over()

    def _note_steps(self, events: EventLog) -> bool:
        """Log the steps that were taken; return False if a loss or gradient norm wasn't finite."""
        done, self._trainer.done = self._trainer.done, []
        read = [step.figures.read() for step in done]
        for step, (loss, grad_norm) in zip(done, read, strict=True):
            self._state.global_step += 1
            self._state.num_input_tokens_seen += step.tokens
            self._state.epoch = self._epoch()
            entry = self._log.step_done(loss, grad_norm, step.learning_rate)
            if entry is not None:
                self._write(events, entry, step.ended_at)
                self._run.on_log({**rewrite_logs(entry), "train/global_step": self._state.global_step})
        return all(math.isfinite(figure) for figures in read for figure in figures)

    def _evaluate(self, events: EventLog) -> bool:
        def on_record(found: dict[str, float], with_checkpoint: bool) -> None:
            self._write(events, self._log.add(found))
            if with_checkpoint:
                self._write_checkpoint()

        return self._supervisor.evaluate(progress_of(self._state), on_record)

    def _diverged(self) -> Ending:
        return Ending(TrialState.DIVERGED, f"its loss or gradient is not finite after {self._state.global_step} steps")

    def _write(self, events: EventLog, entry: dict[str, float], at: float | None = None) -> None:
        for name, value in rewrite_logs(entry).items():
            events.add_scalar(name, value, self._state.global_step, walltime=at)

    def _write_checkpoint(self) -> None:
        if self._checkpointed == self._state.global_step:
            return
        self._checkpointed = self._state.global_step
        parameters = self._adapter.named_parameters()
        write_checkpoint(
            *(self._checkpoints, self._config, parameters, self._flat_optimizer, self._state, self._log.pending),
            self._average_parameters,
        )

    @property
    def _average_parameters(self) -> NamedParameters | None:
        return None if self._average is None else self._kept.named_parameters()

    def _make_optimizer(self) -> FlatOptimizer:
        return FlatOptimizer(self._adapter, self._config, self._length)

    def _tried_out(self) -> MemoryReport:
        """Do the dry run before the trial has any progress to lose; write the memory report to its folder."""
        data, key = self._run.data, id(self._run)

        def longest_rows(tokens: int) -> tuple[Sequence[TokenizedRow], Sequence[TokenizedRow]]:
            return data.train.longest_rows(tokens), data.eval.longest_rows(tokens)

        dry_run = DryRun(key, self._adapter, self._make_optimizer, longest_rows)
        try:
            found = self._loop.dry_run(dry_run)
        except Exception as error:
            if is_out_of_memory(error):
                write_memory_report(self._run.folder, self._loop.memory_report(key).after(dry_run.tried))
            raise
        write_memory_report(self._run.folder, found)
        return found

    def _first_state(self) -> TrainerState:
        first = first_state(self._config, self._run.data.train, self._length)
        if self._run.checkpoint is None:
            return first
        parameters = self._adapter.named_parameters()
        state = read_checkpoint(self._run.checkpoint, parameters, self._flat_optimizer, self._average_parameters)
        # The trial may have been extended since.
        state.max_steps, state.num_train_epochs = first.max_steps, first.num_train_epochs
        return state

    def _rows_of_step(self) -> Callable[[int], list[TokenizedRow]]:
        train = self._run.data.train
        order = RowOrder(len(train), self._config.hyperparameters.effective_batch, self._config.seed)
        self._order = order
        return lambda step: [train.rows[index] for index in order.step(step)]

    def _epoch(self) -> float:
        return self._order.passes(self._state.global_step)

    def _base_eval_loss(self, eval_rows: Sequence[TokenizedRow]) -> float:
        """Return the eval loss of the untrained base; evaluates it if neither config nor checkpoint has it."""
        known = self._run.base_eval_loss
        return (
            EngineModel(self._loop, self._config, eval_rows, None, self._run.ranks).losses().mean
            if known is None
            else known
        )
