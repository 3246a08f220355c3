"""A trial without a trainer whose checkpoints TRL goes on from, and the other way round.

The trial is as plain as can be: the model of transformers and PEFT, and what the engine has of adapter, row order,
dropout, optimizer, log and checkpoints around it. That its losses are TRL's proves these, too.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, set_seed

from tests.support.small_splits import first_rows
from tests.support.trained_trials import CHECKPOINT, STEPS, TOLERANCE, Workshop, step_losses
from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.data.split import Split
from trials.engine.lora.adapter import Adapter
from trials.engine.model.frozen_base import freeze
from trials.engine.optim.build import NamedParameters
from trials.engine.optim.flat import FlatOptimizer
from trials.engine.runtime.checkpointing import first_state, read_checkpoint, write_checkpoint
from trials.engine.runtime.training_log import TrainingLog
from trials.errors import RunFolderError
from trials.model.dropout import count_dropout
from trials.model.loading import attach_adapter, load_base
from trials.records.checkpoints import Checkpoint, CheckpointWriter, choose_checkpoint
from trials.records.trial_dir import Origin, TrialDir, TrialRecord, read_trial
from trials.schedule import full_length
from trials.system.timer import TrialTimer
from trials.training.row_order import RowOrder
from trials.training.training_run import Decision, TrainingRun
from trials.trl.backend import TrlBackend

pytestmark = pytest.mark.slow

BASE_LOSS = 3.0
ROUNDING = 5e-5
NORM_ROUNDING = 5e-4
"""Of a gradient's norm in float32, which processors sum up in other orders: 1.0e-4 on an AMD EPYC."""
CASES: list[tuple[int, dict[str, Any]]] = [
    (64, {"machine": {"micro_batch_rows": 1}}),
    (18, {"loraplus_ratio": 4.0, "weight_decay": 0.1}),  # the checkpoint is in the second epoch
    (20, {"optimizer": "paged_adamw_8bit", "lora_rank": 64, "max_grad_norm": None, "scheduler": "linear"}),
]


class PlainTrial:
    """Trains step by step, from the start or from a checkpoint."""

    def __init__(self, config: TrialConfig, train: Split, checkpoint: Checkpoint | None = None) -> None:
        base = load_base(config.model)
        frozen = freeze(base, torch.float32)
        self.config, self.train = config, train
        self.adapter = Adapter(frozen.targets, config.hyperparameters, config.seed, frozen.final_norm)
        self.named = self.adapter.named_parameters()
        self.model = attach_adapter(base, config.hyperparameters).train()
        _share(dict(self.model.named_parameters()), self.named)
        self.tokens = count_dropout(self.model, config.seed)
        length = full_length(config.hyperparameters, train.epoch)
        self.flat_optimizer = FlatOptimizer(self.adapter, config, length)
        self.order = RowOrder(len(train), config.hyperparameters.effective_batch, config.seed)
        self.state = first_state(config, train, length)
        self.log = TrainingLog(self.state)
        if checkpoint is not None:
            self.state = read_checkpoint(checkpoint, self.named, self.flat_optimizer)
            self.log = TrainingLog(self.state, checkpoint.progress.log)

    def train_to(self, step: int) -> PlainTrial:
        while self.state.global_step < step:
            self._step([self.train.rows[row] for row in self.order.step(self.state.global_step)])
        return self

    def _step(self, rows: list[Any]) -> None:
        ids, labels = (
            pad_sequence([torch.tensor(values) for values in of_rows], batch_first=True, padding_value=fill)
            for of_rows, fill in (([row.input_ids for row in rows], 0), ([row.labels for row in rows], -100))
        )
        lengths = torch.tensor([len(row.input_ids) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        self.tokens.set_position(self.state.global_step, 0, ids)
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()
        limit = self.config.hyperparameters.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_([value for _, value in self.named], limit or float("inf"))
        rate = self.flat_optimizer.learning_rate
        self.flat_optimizer.step()
        self.adapter.gradient.zero_()
        self.state.global_step += 1
        self.state.num_input_tokens_seen += int(lengths.sum())
        self.state.epoch = self.order.passes(self.state.global_step)
        self.log.step_done(loss.detach(), norm, rate)

    def save(self, folder: Path) -> Checkpoint:
        writer = CheckpointWriter(TrialDir(folder), TrialTimer(), BASE_LOSS, keep=None)
        state, pending = self.state, self.log.pending
        write_checkpoint(writer, self.config, self.named, self.flat_optimizer, state, pending)
        return choose_checkpoint(folder, self.state.global_step)


def _share(model: dict[str, Any], named: NamedParameters) -> None:
    """Lets PEFT's modules compute with the adapter's own memory, gradients too."""
    for name, parameter in named:
        model[name].data, model[name].grad = parameter.data, parameter.grad


def _of_steps(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was logged of each step, without TRL's own figures, speeds and rounded epochs."""
    keys = ("step", "loss", "grad_norm", "learning_rate", "num_input_tokens_seen")
    return [{key: entry[key] for key in keys} for entry in history if "loss" in entry]


def _history(record: TrialRecord, step: int) -> list[dict[str, Any]]:
    state = record.folder / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json"
    history: list[dict[str, Any]] = json.loads(state.read_text())["log_history"]
    return history


def _on_with_trl(name: str, folder: Path, trial: PlainTrial, data: TrialData, tokenizer: Any) -> TrialRecord:
    """TRL goes on where the plain trial stands, in a folder of its own."""
    own = TrialDir(folder / name)
    own.begin(trial.config, Origin.SINGLE, name, data.fingerprint)
    checkpoint = trial.save(own.path)
    run = TrainingRun(trial.config, data, tokenizer, own, lambda _: Decision.CONTINUE, checkpoint=checkpoint)
    TrlBackend().run(run)
    return read_trial(own.path)


@pytest.mark.parametrize(("rows", "change"), CASES, ids=str)
def test_either_goes_on_from_the_other_s_checkpoint(
    workshop: Workshop,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    rows: int,
    change: dict[str, Any],
) -> None:
    config = workshop.config(**change)
    data = replace(small_data, train=first_rows(small_data.train, rows))
    straight = workshop.run("straight", config, rows)
    expected = _of_steps(_history(straight, STEPS))
    checkpoint = choose_checkpoint(straight.folder, CHECKPOINT)

    # From TRL to us and back: nothing is lost on the way.
    passed_on = _on_with_trl("passed on", tmp_path, PlainTrial(config, data.train, checkpoint), data, tokenizer)
    assert step_losses(passed_on) == pytest.approx(step_losses(straight), abs=TOLERANCE, rel=0)
    later = [point.eval_loss for point in straight.points if point.step > CHECKPOINT]
    assert [point.eval_loss for point in passed_on.points] == pytest.approx(later, abs=TOLERANCE, rel=0)

    # One half is trained by us, whose sums are rounded in another order.
    first_half = PlainTrial(config, data.train).train_to(CHECKPOINT)
    by_trl = _on_with_trl("second half", tmp_path, first_half, data, tokenizer)
    by_us = PlainTrial(config, data.train, checkpoint).train_to(STEPS)
    for history in (_history(by_trl, STEPS), by_us.state.log_history):
        for found, wanted in zip(_of_steps(history), expected, strict=True):
            assert found.pop("grad_norm") == pytest.approx(wanted["grad_norm"], rel=NORM_ROUNDING)
            assert found == pytest.approx({key: wanted[key] for key in found}, rel=ROUNDING)


def test_our_own_goes_on_bit_by_bit_and_leaves_what_trl_leaves(
    workshop: Workshop, small_data: TrialData, tmp_path: Path
) -> None:
    config, train = workshop.config(), first_rows(small_data.train, 18)
    trial = PlainTrial(config, train).train_to(CHECKPOINT)
    checkpoint = trial.save(tmp_path / "ours")
    again = PlainTrial(config, train, checkpoint).train_to(STEPS)
    assert again.state.log_history == trial.train_to(STEPS).state.log_history
    assert all(torch.equal(one, two) for (_, one), (_, two) in zip(again.named, trial.named, strict=True))
    theirs = workshop.run("theirs", config, 18).folder / "checkpoints" / checkpoint.path.name
    names = {path.name for path in theirs.iterdir()} - {"README.md", "best_adapter", "eval_rows.json"}
    assert {path.name for path in checkpoint.path.iterdir()} == names
    ours, trls = (json.loads((path / "trainer_state.json").read_text()) for path in (checkpoint.path, theirs))
    differs = {"log_history", "epoch", "total_flos", "stateful_callbacks"}
    assert {key: ours[key] for key in ours if key not in differs} == {key: trls[key] for key in ours.keys() - differs}
    assert ours["stateful_callbacks"].keys() == trls["stateful_callbacks"].keys()


def test_the_state_of_random_generators_is_the_seed_s_and_nobody_else_s(
    workshop: Workshop, small_data: TrialData, tmp_path: Path
) -> None:
    trial = PlainTrial(workshop.config(), first_rows(small_data.train, 18))
    set_seed(99)
    before = torch.random.get_rng_state()
    checkpoint = trial.save(tmp_path / "trial")
    assert torch.equal(torch.random.get_rng_state(), before)
    set_seed(trial.config.seed)
    saved = torch.load(checkpoint.path / "rng_state.pth", weights_only=False)
    assert torch.equal(saved["cpu"], torch.random.get_rng_state())


def test_a_checkpoint_of_another_adapter_is_refused(workshop: Workshop, small_data: TrialData, tmp_path: Path) -> None:
    train = first_rows(small_data.train, 18)
    checkpoint = PlainTrial(workshop.config(lora_rank=4), train).save(tmp_path / "trial")
    with pytest.raises(RunFolderError, match="of another adapter"):
        PlainTrial(workshop.config(lora_rank=8), train, checkpoint)
