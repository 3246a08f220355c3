"""What reaches TRL: every searchable hyperparameter, our rows as they are, our evaluation times."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from search_spaces.schema import Recipe
from tests.support.small_splits import first_rows
from trials.data.dataset import TrialData
from trials.data.split import Split
from trials.model.dropout import count_dropout
from trials.model.loading import attach_adapter, load_base
from trials.records.trial_dir import TrialDir
from trials.schedule import TrialLength
from trials.trl.trainer import EvaluationTimes, HeadTrainer, TrialTrainer, build_trainer, sft_config

Build = Callable[..., TrialTrainer]


@pytest.fixture
def few_rows(small_data: TrialData) -> Split:
    return first_rows(small_data.train, 16)


@pytest.fixture
def build(small_recipe: Recipe, few_rows: Split, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Build:
    """A trainer of the demo with these hyperparameters, its optimizer and scheduler made for 20 steps."""

    def of(**hyperparameters: Any) -> TrialTrainer:
        config = small_recipe.trial_config(hyperparameters)
        trainer = build_trainer(
            attach_adapter(load_base(config.model), config.hyperparameters),
            tokenizer,
            few_rows,
            config,
            TrialLength(steps=20, tokens=3000),
            lambda *_: False,
            EvaluationTimes([3000], lambda: False),
            TrialDir(tmp_path),
        )
        trainer.create_optimizer_and_scheduler(num_training_steps=20)
        return trainer

    return of


def _rates(trainer: TrialTrainer) -> list[float]:
    """The learning rate of each of the 20 steps."""
    rates = []
    for _ in range(20):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return rates


def _decays(trainer: TrialTrainer) -> set[float]:
    return {group["weight_decay"] for group in trainer.optimizer.param_groups if group["params"]}


def test_learning_rate(build: Build) -> None:
    assert max(_rates(build(learning_rate=7e-4, warmup_fraction=0.0))) == pytest.approx(7e-4)


@pytest.mark.parametrize(("fraction", "steps"), [(0.0, 0), (0.1, 2), (0.5, 10)])
def test_warmup(build: Build, fraction: float, steps: int) -> None:
    rates = _rates(build(learning_rate=1e-3, warmup_fraction=fraction, scheduler="constant_with_warmup"))
    assert rates.index(max(rates)) == steps
    assert rates[steps:] == pytest.approx([1e-3] * (20 - steps))
    assert rates[:steps] == pytest.approx([1e-3 * step / steps for step in range(steps)])


@pytest.mark.parametrize(
    ("scheduler", "half"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0), ("constant_with_warmup", 1.0)]
)
def test_scheduler(build: Build, scheduler: str, half: float) -> None:
    rates = _rates(build(learning_rate=1e-3, warmup_fraction=0.0, scheduler=scheduler))
    assert rates[10] == pytest.approx(half * 1e-3)
    quarter = {"cosine": (1 + math.cos(math.pi / 4)) / 2, "linear": 0.75}.get(scheduler, 1.0)
    assert rates[5] == pytest.approx(quarter * 1e-3)


def test_inverse_sqrt_falls_whatever_the_length(build: Build) -> None:
    # Without the epoch's steps warm-up is a share of the 20 steps.
    rates = _rates(build(learning_rate=1e-3, warmup_fraction=0.1, scheduler="inverse_sqrt"))
    assert rates[:2] == pytest.approx([0.0, 0.5e-3])
    assert rates[2:] == pytest.approx([1e-3 * math.sqrt(100 / (100 + step)) for step in range(18)])


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_weight_decay(build: Build, ratio: float) -> None:
    assert max(_decays(build(weight_decay=0.25, loraplus_ratio=ratio))) == 0.25


@pytest.mark.parametrize(
    ("name", "class_name", "bits"),
    [
        ("adamw_torch", "AdamW", None),
        ("adamw_torch_fused", "AdamW", None),
        ("adamw_8bit", "AdamW", 8),
        ("paged_adamw_8bit", "AdamW", 8),
        ("paged_adamw_32bit", "AdamW", 32),
    ],
)
def test_optimizer(build: Build, name: str, class_name: str, bits: int | None) -> None:
    optimizer = build(optimizer=name).optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)
    assert type(optimizer).__name__ == class_name
    if bits is None:
        assert bool(optimizer.defaults["fused"]) == name.endswith("fused")
    else:
        assert optimizer.args.optim_bits == bits
        assert optimizer.is_paged == name.startswith("paged")


def test_lora_plus_lets_b_learn_faster(build: Build) -> None:
    trainer = build(learning_rate=1e-3, loraplus_ratio=8.0, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {
        (names[id(parameter)].count("lora_B"), round(group["initial_lr"], 9))
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates == {(0, 1e-3), (1, 8e-3)}
    learning = sum(parameter.requires_grad for parameter in trainer.model.parameters())
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == learning


def test_without_lora_plus_all_learn_alike(build: Build) -> None:
    assert len({group["lr"] for group in build(loraplus_ratio=1.0).optimizer.param_groups}) == 1


@pytest.mark.parametrize("used", [True, False])
def test_the_adapter_begins_and_learns_in_float32(build: Build, small_recipe: Recipe, used: bool) -> None:
    # TRL would make it bfloat16, in which small updates are lost.
    torch.manual_seed(0)
    config = small_recipe.trial_config({"use_dora": used})
    untouched = attach_adapter(load_base(config.model), config.hyperparameters)
    torch.manual_seed(0)
    model = build(use_dora=used).model
    pairs = list(zip(model.parameters(), untouched.parameters(), strict=True))
    assert {ours.dtype for ours, _ in pairs if ours.requires_grad} == {torch.float32}
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs if ours.requires_grad)


def test_max_grad_norm_and_neftune(build: Build) -> None:
    arguments = build(max_grad_norm=0.37, neftune_noise_alpha=5.0).args
    assert (arguments.max_grad_norm, arguments.neftune_noise_alpha) == (0.37, 5.0)
    assert build(neftune_noise_alpha=0.0).args.neftune_noise_alpha is None


@pytest.mark.parametrize(("effective", "tokens", "micro"), [(8, 4096, 8), (12, 400, 3), (6, 1, 1)])
def test_effective_batch(
    small_recipe: Recipe, small_data: TrialData, tmp_path: Path, effective: int, tokens: int, micro: int
) -> None:
    config = small_recipe.trial_config({"effective_batch": effective})
    config = config.model_copy(update={"machine": config.machine.model_copy(update={"micro_batch_tokens": tokens})})
    arguments = sft_config(config, small_data.train, TrialLength(5, 100), tmp_path)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (micro, effective // micro)


def test_rows_reach_the_model_as_we_tokenised_them(build: Build, few_rows: Split) -> None:
    trainer = build(effective_batch=16)
    (batch,) = trainer.get_train_dataloader()
    rows = {
        (tuple(ids[:length]), tuple(labels[:length]))
        for ids, labels, length in zip(
            batch["input_ids"].tolist(), batch["labels"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True
        )
    }
    assert rows == {(tuple(row.input_ids), tuple(row.labels)) for row in few_rows.rows}


@pytest.mark.parametrize("alpha", [0.0, 20.0])
def test_neftune_disturbs_training_and_never_an_evaluation(
    small_recipe: Recipe, few_rows: Split, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, alpha: float
) -> None:
    seen: list[tuple[bool, bool]] = []

    def evaluate(*_: Any) -> bool:
        ids = torch.tensor([few_rows.rows[0].input_ids])
        with torch.no_grad():
            noisy, calm = ([model.train(mode)(input_ids=ids).logits for _ in range(2)] for mode in (True, False))
        model.train()
        seen.append((torch.equal(*noisy), torch.equal(*calm)))
        return True

    config = small_recipe.trial_config({"neftune_noise_alpha": alpha, "lora_dropout": 0.0})
    model = attach_adapter(load_base(config.model), config.hyperparameters)
    times = EvaluationTimes([1], lambda: False)
    build_trainer(model, tokenizer, few_rows, config, TrialLength(1, 1), evaluate, times, TrialDir(tmp_path)).train()
    assert seen == [(alpha == 0.0, True)]


@pytest.mark.parametrize(
    ("seen", "step", "over", "asks"),
    [
        ([50, 99], 2, False, [False, False]),
        ([100, 150, 200], 3, False, [True, False, True]),
        ([250, 260, 300], 3, False, [True, False, True]),  # one evaluation for two that are due at once
        ([10, 20], 10, False, [True, True]),  # the last step, whatever the tokens
        ([10, 20], 2, True, [True, True]),
    ],
)
def test_evaluations_come_at_tokens_at_the_last_step_and_when_time_is_over(
    seen: list[int], step: int, over: bool, asks: list[bool]
) -> None:
    times = EvaluationTimes([100, 200, 300], lambda: over)
    asked = []
    for tokens in seen:
        state, control = TrainerState(), TrainerControl()
        state.num_input_tokens_seen, state.global_step, state.max_steps = tokens, step, 10
        asked.append(times.on_step_end(None, state, control).should_evaluate)
    assert asked == asks


def _step_losses(kind: type, small_recipe: Recipe, rows: Split, folder: Path, **more: Any) -> list[float]:
    """Train losses of four steps of an adapter without dropout, by one kind of trainer."""
    values = {"lora_dropout": 0.0, "effective_batch": 4, "learning_rate": 5e-3, **more}
    config = small_recipe.trial_config(values)
    torch.manual_seed(0)
    model = attach_adapter(load_base(config.model), config.hyperparameters)
    trainer = kind(
        model=model,
        args=sft_config(config, rows, TrialLength(4, 1000), folder),
        train_dataset=rows.for_training,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL rounds the adapter that it's given
            parameter.data = parameter.data.bfloat16().float()
    trainer.evaluate_trial = lambda *_: False
    trainer.tokens_in_step = count_dropout(model, 0)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_trainer_of_a_head_has_trl_s_loss(small_recipe: Recipe, few_rows: Split, tmp_path: Path) -> None:
    ours = _step_losses(HeadTrainer, small_recipe, few_rows, tmp_path / "ours")
    theirs = _step_losses(TrialTrainer, small_recipe, few_rows, tmp_path / "theirs")
    assert len(ours) == 4
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_an_adapter_on_the_head_is_trained(
    small_recipe: Recipe, few_rows: Split, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = small_recipe.trial_config({"target_modules": ["q_proj", "lm_head"], "learning_rate": 5e-3})
    model = attach_adapter(load_base(config.model), config.hyperparameters)
    times = EvaluationTimes([1], lambda: False)
    trainer = build_trainer(
        model, tokenizer, few_rows, config, TrialLength(2, 100), lambda *_: False, times, TrialDir(tmp_path)
    )
    assert isinstance(trainer, HeadTrainer)
    trainer.train()
    moved = {name for name, value in model.named_parameters() if "lora_B" in name and value.abs().sum() > 0}
    assert any("lm_head" in name for name in moved)
    assert any("q_proj" in name for name in moved)
