"""Dropout by counting: its statistics, its independence of how a step is split, and its place in TRL's training."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from search_spaces.schema import Recipe
from tests.support.small_splits import first_rows
from trials.data.dataset import TrialData
from trials.data.split import Split
from trials.model.dropout import CounterDropout, TokenCounter, count_dropout, dropped, feature_keys, fmix32, token_keys
from trials.model.loading import attach_adapter, load_base
from trials.records.trial_dir import TrialDir
from trials.schedule import TrialLength
from trials.trl.trainer import EvaluationTimes, build_trainer

TOKENS, FEATURES = 512, 768
NAME = "model.layers.0.self_attn.q_proj"


def _kept(p: float = 0.5, *, seed: int = 0, step: int = 0, slot: int = 0, module: str = NAME) -> Tensor:
    keys = token_keys(seed, step, torch.tensor(slot), torch.arange(TOKENS))
    return dropped(torch.ones(TOKENS, FEATURES), keys, feature_keys(module, FEATURES, "cpu"), p) > 0


def _mix(h: int) -> int:
    """MurmurHash3's finaliser, in Python's whole numbers."""
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
        h ^= h >> shift
        h = h * multiplier % 2**32
    return h


def test_the_hash_is_murmur_s() -> None:
    numbers = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678]
    assert fmix32(torch.tensor(numbers)).tolist() == [_mix(number) for number in numbers]
    assert _mix(1) == 0x514E28B7  # as published


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3])
def test_keys_are_those_of_the_formula(seed: int) -> None:
    step, slot, position, feature = 12345, 70000, 2**17, 99
    token = _mix(_mix((seed + 0x9E3779B9) % 2**32) ^ step)
    token = _mix(token ^ (slot * 0x9E3779B1 % 2**32))
    token = _mix(token ^ (position * 0x85EBCA77 % 2**32))
    assert token_keys(seed, step, torch.tensor([slot]), torch.tensor([position])).tolist() == [token]
    of_feature = _mix((zlib.crc32(NAME.encode()) + feature * 0x9E3779B1) % 2**32)
    assert feature_keys(NAME, 100, "cpu")[feature].item() == of_feature


@pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.9])
def test_the_share_that_is_dropped_and_the_scale_of_the_rest(p: float) -> None:
    x = torch.randn(TOKENS, FEATURES)
    y = dropped(x, token_keys(1, 0, torch.tensor(0), torch.arange(TOKENS)), feature_keys(NAME, FEATURES, "cpu"), p)
    error = (p * (1 - p)) ** 0.5
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=4 * error / (TOKENS * FEATURES) ** 0.5)
    # No token and no feature is out of luck: each has its share, but for chance.
    for dim, others in ((0, TOKENS), (1, FEATURES)):
        shares = (y == 0).float().mean(dim)
        assert (shares - p).abs().max().item() < 5 * error / others**0.5
        assert shares.std().item() == pytest.approx(error / others**0.5, rel=0.15)
    assert torch.allclose(y[y != 0], x[y != 0] / (1 - p))


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"step": 1}, {"slot": 1}, {"module": NAME.replace("q", "k")}, {"module": NAME.replace("0", "1")}],
    ids=str,
)
def test_masks_that_have_nothing_to_do_with_each_other(other: dict[str, Any]) -> None:
    one, two = _kept(), _kept(**other)
    _assert_independent(one, two)
    _assert_independent(one[1:], two[:-1])  # nor is one the other, moved on


@pytest.mark.parametrize("shift", [1, 2, 64])
def test_neighbours_have_nothing_to_do_with_each_other(shift: int) -> None:
    kept = _kept()
    _assert_independent(kept[shift:], kept[:-shift])
    _assert_independent(kept[:, shift:], kept[:, :-shift])


def _assert_independent(one: Tensor, two: Tensor) -> None:
    signs = torch.where(one == two, 1.0, -1.0)
    assert abs(signs.mean().item()) < 4.5 / signs.numel() ** 0.5
    assert signs.mean(0).abs().max().item() < 5 / len(signs) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_mask_and_the_gradient_are_the_same_in_every_type(dtype: torch.dtype) -> None:
    x = torch.ones(TOKENS, FEATURES, dtype=dtype, requires_grad=True)
    y = dropped(x, token_keys(0, 0, torch.tensor(0), torch.arange(TOKENS)), feature_keys(NAME, FEATURES, "cpu"), 0.5)
    y.sum().backward()
    assert y.dtype == dtype
    assert torch.equal(y > 0, _kept())
    assert x.grad is not None
    assert torch.equal(x.grad, y)


def test_a_row_s_mask_knows_neither_its_neighbours_nor_its_padding() -> None:
    tokens = TokenCounter(seed=3)
    module = CounterDropout(0.4, NAME, FEATURES, tokens)

    def mask(first: int, rows: int, length: int) -> Tensor:
        tokens.set_position(5, first, torch.empty(rows, length))
        made: Tensor = module(torch.ones(rows, length, FEATURES))
        return made

    together = mask(0, 4, 20)
    assert torch.equal(mask(2, 1, 9)[0], together[2, :9])
    assert torch.equal(mask(1, 3, 20), together[1:])
    assert not torch.equal(together[0], together[1])
    tokens.set_position(6, 0, torch.empty(4, 20))
    assert not torch.equal(module(torch.ones(4, 20, FEATURES)), together)


def test_in_evaluation_nothing_is_dropped_and_no_place_is_asked_for() -> None:
    x = torch.ones(2, 3, 4)
    module = CounterDropout(0.5, NAME, 4, TokenCounter(0))
    assert module.eval()(x) is x
    with pytest.raises(ValueError, match=r"which tokens stand in a tensor \[2, 3\]"):
        module.train()(x)


@pytest.fixture
def losses(
    small_recipe: Recipe, small_data: TrialData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Callable[..., list[float]]:
    """The training loss of six steps of eight rows, two of which end an epoch of 20 rows."""
    rows = first_rows(small_data.train, 20)

    def of(micro: int, checkpointing: bool = False, **hyperparameters: Any) -> list[float]:
        values = {"lora_dropout": 0.3, "effective_batch": 8, "learning_rate": 5e-3, "weight_decay": 0.0}
        config = small_recipe.trial_config({**values, **hyperparameters})
        change = {"micro_batch_rows": micro, "gradient_checkpointing": checkpointing}
        config = config.model_copy(update={"machine": config.machine.model_copy(update=change)})
        return _train(config, rows, tokenizer, tmp_path)

    return of


def _train(config: Any, rows: Split, tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[float]:
    torch.manual_seed(0)
    model = attach_adapter(load_base(config.model), config.hyperparameters)
    times, length = EvaluationTimes([10**9], lambda: False), TrialLength(6, 10**9)
    trainer = build_trainer(model, tokenizer, rows, config, length, lambda *_: False, times, TrialDir(folder))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("change", [{}, {"target_modules": ["q_proj", "lm_head"]}, {"use_dora": True}], ids=str)
def test_the_split_into_micro_batches_changes_no_loss(
    losses: Callable[..., list[float]], change: dict[str, Any]
) -> None:
    whole = losses(8, **change)
    assert len(whole) == 6
    for micro in (1, 2):
        assert losses(micro, **change) == pytest.approx(whole, rel=1e-5)
    assert losses(8, **change, lora_dropout=0.0)[1:] != pytest.approx(whole[1:], rel=1e-3)


def test_what_is_recomputed_drops_the_same(losses: Callable[..., list[float]]) -> None:
    assert losses(4, checkpointing=True) == pytest.approx(losses(4), rel=1e-6)


def test_only_adapters_with_dropout_get_it(small_recipe: Recipe) -> None:
    for p, expected in ((0.2, 4), (0.0, 0)):
        config = small_recipe.trial_config({"lora_dropout": p})
        model = attach_adapter(load_base(config.model), config.hyperparameters)
        count_dropout(model, 0)
        found = [module for module in model.modules() if isinstance(module, CounterDropout)]
        assert len(found) == expected * model.config.num_hidden_layers
        assert not any(isinstance(module, torch.nn.Dropout) for module in model.modules() if p)


def test_tokens_may_be_elsewhere_when_a_micro_batch_begins() -> None:
    """As a trainer has them that moves them to its GPU later; the meta device stands in for one."""
    tokens = TokenCounter(seed=1)
    dropout = CounterDropout(0.5, "layers.0.q_proj", 8, tokens).train()
    tokens.set_position(0, 0, torch.zeros((2, 3), dtype=torch.int64))
    found = dropout(torch.ones((2, 3, 8), device="meta"))
    assert found.device.type == "meta"
    assert found.shape == (2, 3, 8)
