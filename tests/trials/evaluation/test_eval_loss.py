"""Eval loss: what a plain loop over rows gives, and nothing else changed by it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from trials.config import Hyperparameters, TrialConfig
from trials.data.dataset import TrialData
from trials.evaluation.eval_loss import evaluate_rows
from trials.model.loading import attach_adapter, load_base


@pytest.fixture(scope="module")
def model(small_config: TrialConfig) -> PeftModel:
    """The demo base in NF4 with an adapter that changes something and has dropout, in training mode."""
    torch.manual_seed(0)
    adapted = attach_adapter(load_base(small_config.model), Hyperparameters(epochs=1.0, lora_dropout=0.3))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return adapted.train()


@pytest.fixture
def without_dropout(model: PeftModel) -> Iterator[PeftModel]:
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for dropout in dropouts:
        dropout.p = 0.0
    yield model
    for dropout in dropouts:
        dropout.p = 0.3


@pytest.fixture(scope="module")
def by_the_book(model: PeftModel, small_data: TrialData) -> list[float]:
    """Each row alone, all its logits, the loss of its labels."""
    model.eval()
    sums = []
    with torch.no_grad():
        for row in small_data.eval.rows:
            ids = torch.tensor([row.input_ids])
            logits = model(input_ids=ids).logits[0].float()
            sums.append(float(cross_entropy(logits[:-1], torch.tensor(row.labels[1:]), reduction="sum")))
    model.train()
    return sums


def _gradients(model: PeftModel, data: TrialData) -> dict[str, torch.Tensor]:
    model.zero_grad()
    row = data.train.rows[0]
    model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("batch_rows", [1, 5, 12])
def test_it_equals_a_loop_over_rows_however_rows_are_batched(
    model: PeftModel, small_data: TrialData, by_the_book: list[float], batch_rows: int
) -> None:
    losses = evaluate_rows(model, small_data.eval.rows, batch_rows)
    assert losses.loss_sums == pytest.approx(by_the_book, rel=1e-5)
    tokens = sum(len(row.labels) - row.labels.count(-100) for row in small_data.eval.rows)
    assert losses.mean == pytest.approx(sum(by_the_book) / tokens, abs=1e-5)


def test_a_mean_of_batch_means_would_be_another_figure(model: PeftModel, small_data: TrialData) -> None:
    losses = evaluate_rows(model, small_data.eval.rows, 4)
    means = [s / n for s, n in zip(losses.loss_sums, losses.token_counts, strict=True)]
    assert abs(statistics.mean(means) - losses.mean) > 1e-4


def test_row_losses_are_in_the_order_of_the_rows(model: PeftModel, small_data: TrialData) -> None:
    rows = small_data.eval.rows
    forwards, backwards = evaluate_rows(model, rows, 4), evaluate_rows(model, rows[::-1], 4)
    assert forwards.loss_sums == pytest.approx(backwards.loss_sums[::-1], rel=1e-5)
    assert list(forwards.token_counts) == [row.completion_tokens for row in rows]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_before(model: PeftModel, small_data: TrialData, training: bool) -> None:
    model.train(training)
    before = [module.training for module in model.modules()]
    evaluate_rows(model, small_data.eval.rows[:2], 2)
    assert [module.training for module in model.modules()] == before
    model.train()


def test_it_is_the_same_twice_in_spite_of_dropout(model: PeftModel, small_data: TrialData) -> None:
    first, second = (evaluate_rows(model, small_data.eval.rows, 6) for _ in range(2))
    assert first == second


def test_learning_goes_on_after_an_evaluation(without_dropout: PeftModel, small_data: TrialData) -> None:
    # bitsandbytes on a CPU with AVX512-BF16 would lose every adapter gradient here.
    before = _gradients(without_dropout, small_data)
    evaluate_rows(without_dropout, small_data.eval.rows, 4)
    after = _gradients(without_dropout, small_data)
    trainable = [name for name, p in without_dropout.named_parameters() if p.requires_grad]
    assert sorted(before) == sorted(after) == sorted(trainable)
    for name, gradient in before.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(after[name], gradient)


def test_a_loss_that_is_no_number_is_kept(model: PeftModel, small_data: TrialData) -> None:
    weights = next(p for name, p in model.named_parameters() if "lora_B" in name)
    saved = weights.detach().clone()
    with torch.no_grad():
        weights.fill_(float("nan"))
    assert math.isnan(evaluate_rows(model, small_data.eval.rows[:3], 2).mean)
    with torch.no_grad():
        weights.copy_(saved)
