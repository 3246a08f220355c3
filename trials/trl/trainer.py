"""TRL's `SFTTrainer` set up for one trial: our rows, our evaluation, and no default that changes the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, rewrite_logs
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trials.config import TrialConfig
from trials.data.split import Split
from trials.model.dropout import TokenCounter, count_dropout
from trials.records.checkpoints import CheckpointWriter
from trials.records.trial_dir import TrialDir
from trials.schedule import (
    TokenTriggers,
    TrialLength,
    checkpoint_steps,
    logging_steps,
    micro_batch_rows,
    schedule_arguments,
    warmup_steps,
)
from trials.system.distributed import ALONE, ProcessGroup
from trials.tracking.event_log import EventLog
from trials.training.evaluation_loop import OnRecord
from trials.training.training_run import OnLog, never, unheard
from trials.trl.checkpointing import CheckpointedTrainer, CheckpointTimes
from trials.trl.dry_run import LongestRows, dry_run
from trials.trl.fsdp import FsdpCallback, leave_base_out_of_ddp
from trials.trl.sampler import RankBatchSampler, RankLoader, rows_of_a_rank, seen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Evaluate = Callable[[TrainerState, OnRecord], bool]
"""Evaluates the current model, records the result, and returns whether training ends with it."""


class _TrialTrainerBase(CheckpointedTrainer):
    """Trainer with our evaluation instead of the mean of batch means, and dropout by each row's place in its step."""

    evaluate_trial: Evaluate
    tokens_in_step: TokenCounter
    worst_rows: LongestRows | None = None
    """Rows of the dry run before the first micro-batch; None: there is none, or it has run."""
    on_fitting: Callable[[], None] = staticmethod(lambda: None)
    """Called once the dry run has fitted into memory."""
    rank_batches: RankBatchSampler | None = None
    """This process's part of the rows; None: it is alone, and has them all."""
    is_sharded = False
    """Whether the base is sharded: then every rank takes part in all computations."""
    _rows_done = 0
    """Rows of the current optimizer step before the current micro-batch, including other ranks'."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this process's rows; the trainer calls this as it begins."""
        batches = self.rank_batches
        if batches is None:
            whole: DataLoader[Any] = super().get_train_dataloader()
            return whole
        pin_memory = self.args.dataloader_pin_memory
        return RankLoader(self.train_dataset, batches, self.data_collator, pin_memory=pin_memory)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of one optimizer step; called as a step begins (transformers 5.23)."""
        self._rows_done = self.rank_batches.first_slot(self.state.global_step) if self.rank_batches is not None else 0
        batches: tuple[list[Any], Any] = super().get_batch_samples(*args, **kwargs)
        return batches

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the forward and backward pass of one micro-batch, after the dry run if there is one."""
        if self.worst_rows is not None:
            worst, self.worst_rows = self.worst_rows, None
            self._try_out(model, worst)
        if self.rank_batches is not None:
            inputs = self._prepare_inputs(seen(inputs))
        self.tokens_in_step.set_position(self.state.global_step, self._rows_done, inputs["input_ids"])
        self._rows_done += len(inputs["input_ids"])
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def _try_out(self, model: nn.Module, worst: LongestRows) -> None:
        rows_done = self._rows_done
        if self.is_sharded:
            dry_run(self, model, worst, may_halve=False)
        else:
            self.ranks.all_gather(lambda: dry_run(self, model, worst))
        self._rows_done = rows_done
        self.on_fitting()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the frozen rows and log the result; the trainer calls this when `EvaluationTimes` asks."""
        self.control.should_evaluate = False  # the trainer asks again after its last step
        if self.evaluate_trial(self.state, self._on_record):
            self.control.should_training_stop = True
            self.control.should_save = False  # the side that ended it may already be cleaning up its folder
        return {}

    def _on_record(self, found: dict[str, float], with_checkpoint: bool) -> None:
        self.log(found)
        if with_checkpoint:
            self.control.should_save = False  # a checkpoint that is due now is this one
            self._save_checkpoint(self.model, None)


class TrialTrainer(_TrialTrainerBase, SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` with our evaluation."""


class HeadTrainer(_TrialTrainerBase):
    """Trainer for an adapter on the vocabulary projection, which TRL's fused loss would bypass, so TRL refuses it.

    The loss is transformers' own, which holds all logits at once.
    """


class EvaluationTimes(TrainerCallback):  # type: ignore[misc]
    """Callback that asks for an evaluation at given numbers of tokens, at the last step, and when time is over.

    It ends training without one after the step in which the trial is called off.
    """

    def __init__(
        self, tokens: Sequence[int], time_is_over: Callable[[], bool], is_called_off: Callable[[], bool] = never
    ) -> None:
        self._triggers = TokenTriggers(tokens)
        self._time_is_over = time_is_over
        self._is_called_off = is_called_off
        self.was_called_off = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Skip evaluation points that were passed before the checkpoint from which the trial resumes."""
        self._triggers.advance(state.num_input_tokens_seen)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for an evaluation if one is due; the trainer calls this after every optimizer step."""
        if self._is_called_off():
            self.was_called_off = control.should_training_stop = True
            return control
        is_reached = self._triggers.advance(state.num_input_tokens_seen)
        if is_reached or state.global_step >= state.max_steps or self._time_is_over():
            control.should_evaluate = True
        return control


class TrainingFigures(TrainerCallback):  # type: ignore[misc]
    """Callback that passes on what is logged of training steps, named as by transformers' `WandbCallback`.

    Evaluations are passed on elsewhere.
    """

    def __init__(self, on_log: OnLog) -> None:
        self._on_log = on_log

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass on an entry with a training loss; the trainer calls this with every entry of its log."""
        figures = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "loss" in figures:
            self._on_log({**rewrite_logs(figures), "train/global_step": state.global_step})


def build_trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Split,
    config: TrialConfig,
    length: TrialLength,
    evaluate: Evaluate,
    times: EvaluationTimes,
    folder: TrialDir,
    checkpoints: CheckpointWriter | None = None,
    steps_done: int = 0,
    ranks: ProcessGroup = ALONE,
    on_log: OnLog = unheard,
) -> _TrialTrainerBase:
    """Return a trainer that is ready for `train()`, or for `go_on_from()` a checkpoint that has `steps_done`."""
    arguments = sft_config(config, train, length, folder.path, ranks)
    kind = HeadTrainer if _adapts_head(model) else TrialTrainer
    with _adapter_as_it_is(model):
        trainer: _TrialTrainerBase = kind(
            model=model,
            args=arguments,
            train_dataset=train.for_training,
            processing_class=tokenizer,
            data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
            callbacks=[times, TensorBoardCallback(EventLog(folder, steps_done)), TrainingFigures(on_log)],
            optimizers=(_loraplus_optimizer(model, arguments, config), None),
        )
    trainer.evaluate_trial = evaluate
    trainer.tokens_in_step = count_dropout(model, config.seed)
    if ranks.world_size > 1:
        _join(trainer, model, train, config, ranks)
    trainer.remove_callback(PrinterCallback)
    trainer.checkpoints = checkpoints
    every_steps = checkpoint_steps(config.hyperparameters.effective_batch, config.machine)
    if checkpoints is not None and every_steps is not None:
        trainer.add_callback(CheckpointTimes(every_steps))
    return trainer


def _join(trainer: _TrialTrainerBase, model: PeftModel, train: Split, config: TrialConfig, ranks: ProcessGroup) -> None:
    """Make a trainer one rank of several: give it its part of the rows."""
    trainer.ranks = ranks
    micro_batch = trainer.args.per_device_train_batch_size
    batch = config.hyperparameters.effective_batch
    trainer.rank_batches = RankBatchSampler(len(train), batch, micro_batch, config.seed, ranks)
    leave_base_out_of_ddp(model)
    if not ranks.is_first:
        torch.manual_seed(config.seed + ranks.rank)  # each rank draws its own NEFTune noise
    if config.machine.fsdp:
        trainer.is_sharded = True
        trainer.add_callback(FsdpCallback(ranks))


def _adapts_head(model: PeftModel) -> bool:
    return isinstance(model.get_output_embeddings(), BaseTunerLayer)


@contextmanager
def _adapter_as_it_is(model: PeftModel) -> Iterator[None]:
    """Undo TRL's cast of a quantised model's adapter to bfloat16 (trl 1.16, `SFTTrainer.__init__`).

    In bfloat16 a weight of 0.05 can't change by less than 2e-4, so small learning rates train nothing. Reloaded in
    PEFT's float32, the adapter isn't the one that was evaluated. Nor may it begin with rounded weights.
    """
    weights = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
    yield
    for parameter, weight in weights.items():
        parameter.data = weight


def sft_config(
    config: TrialConfig, train: Split, length: TrialLength, folder: Path, ranks: ProcessGroup = ALONE
) -> SFTConfig:
    """Return TRL's settings of one trial. Every default that would change the loss is named here."""
    hp = config.hyperparameters
    rows = rows_of_a_rank(hp.effective_batch, ranks)
    micro_batch = micro_batch_rows(rows, train.longest, config.machine)
    on_gpu = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=length.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=rows // micro_batch,
        average_tokens_across_devices=True,
        ddp_backend="gloo" if ranks.world_size > 1 and not on_gpu else None,
        ddp_find_unused_parameters=False,  # every step passes the whole adapter
        learning_rate=hp.learning_rate,
        lr_scheduler_type=hp.scheduler,
        lr_scheduler_kwargs=schedule_arguments(hp),
        warmup_steps=warmup_steps(hp, length),
        weight_decay=hp.weight_decay,
        optim=hp.optimizer,
        max_grad_norm=hp.max_grad_norm or 0.0,  # transformers takes 0 for "not clipped"
        neftune_noise_alpha=hp.neftune_noise_alpha or None,
        max_length=None,  # rows over the limit were refused or dropped before; nothing is cut here
        packing=False,
        bf16=on_gpu and config.model.compute_dtype != "float32",
        use_cpu=not on_gpu,
        gradient_checkpointing=config.machine.gradient_checkpointing,
        dataloader_pin_memory=on_gpu,
        include_num_input_tokens_seen="non_padding",
        eval_strategy="no",  # EvaluationTimes asks for evaluations
        save_strategy="no",  # TrialDir keeps the best adapter, and CheckpointTimes asks for checkpoints
        logging_steps=logging_steps(hp, length),
        logging_nan_inf_filter=False,
        report_to="none",  # TrainingFigures logs to W&B, TensorBoardCallback to TensorBoard: neither fails the trial
        disable_tqdm=True,
        seed=config.seed,
        data_seed=config.seed,
    )
    # A process uses one GPU, even if it sees more: transformers would spread each batch by nn.DataParallel.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _loraplus_optimizer(model: PeftModel, arguments: SFTConfig, config: TrialConfig) -> torch.optim.Optimizer | None:
    """Return a LoRA+ optimizer (arXiv 2402.12354), in which B learns faster than A; None: the trainer makes its own."""
    ratio = config.hyperparameters.loraplus_ratio
    if ratio == 1.0:
        return None
    optimizer_class, kwargs = SFTTrainer.get_optimizer_cls_and_kwargs(arguments, model)
    kwargs["loraplus_weight_decay"] = arguments.weight_decay
    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model=model, optimizer_cls=optimizer_class, loraplus_lr_ratio=ratio, **kwargs
    )
    return optimizer
