"""The optimizer over an adapter as one parameter, against one with a parameter for each matrix."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from search_spaces.schema import Recipe
from trials.config import Optimizer, TrialConfig
from trials.engine.lora.adapter import Adapter
from trials.engine.optim.build import build_optimizer
from trials.engine.optim.flat import FlatOptimizer
from trials.schedule import TrialLength

LENGTH = TrialLength(steps=20, tokens=2000)
Make = Callable[..., TrialConfig]


@pytest.fixture
def make(small_recipe: Recipe) -> Make:
    def config(**hyperparameters: Any) -> TrialConfig:
        values = {"learning_rate": 0.02, "weight_decay": 0.1, "warmup_fraction": 0.1, "lora_rank": 64}
        return small_recipe.trial_config({**values, **hyperparameters})

    return config


def _adapter(config: TrialConfig, features: int = 64) -> Adapter:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    targets = [(f"model.layers.{layer}.self_attn.{name}", features, features) for layer in range(2) for name in names]
    return Adapter(targets, config.hyperparameters, config.seed, torch.empty(0))


class _PerMatrix:
    """What `FlatOptimizer` has to equal."""

    def __init__(self, adapter: Adapter, config: TrialConfig) -> None:
        self.adapter = adapter
        self.optimizer, self.scheduler = build_optimizer(adapter.named_parameters(), config, LENGTH)

    def step(self) -> None:
        self.optimizer.step()
        self.scheduler.step()


def _train(adapter: Adapter, flat_optimizer: FlatOptimizer | _PerMatrix, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        adapter.gradient.copy_(torch.randn(adapter.gradient.shape, generator=generator))
        flat_optimizer.step()


def _pair(config: TrialConfig, features: int = 64) -> tuple[FlatOptimizer, Adapter, _PerMatrix]:
    adapter, other = _adapter(config, features), _adapter(config, features)
    return FlatOptimizer(adapter, config, LENGTH), adapter, _PerMatrix(other, config)


def _same(found: Any, expected: Any) -> bool:
    """Tensors bit by bit, containers entry by entry."""
    if isinstance(expected, Tensor):
        return found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    return bool(found == expected)


CASES = [
    *({"optimizer": name} for name in get_args(Optimizer)),
    *({"optimizer": name, "loraplus_ratio": 8.0} for name in ("adamw_torch", "adamw_8bit")),
]


@pytest.mark.parametrize("features", [64, 40])
@pytest.mark.parametrize("change", CASES, ids=str)
def test_weights_and_state_are_those_of_a_parameter_a_matrix(make: Make, change: dict[str, Any], features: int) -> None:
    # 64 x 40 values are neither whole blocks of 256 nor enough for 8-bit state.
    flat_optimizer, adapter, reference = _pair(make(**change), features)
    start = adapter.flat.clone()
    _train(adapter, flat_optimizer, 0, 6)
    _train(reference.adapter, reference, 0, 6)
    assert torch.equal(adapter.flat, reference.adapter.flat)
    assert not torch.equal(adapter.flat, start)
    assert flat_optimizer.learning_rate == reference.scheduler.get_last_lr()[0]
    assert _same(flat_optimizer.state_dict(), reference.optimizer.state_dict())


@pytest.mark.parametrize("change", CASES, ids=str)
def test_either_goes_on_from_the_other_s_state(make: Make, change: dict[str, Any]) -> None:
    config = make(**change)
    straight, adapter, _ = _pair(config)
    _train(adapter, straight, 0, 4)
    half, saved = adapter.flat.clone(), _on_disk(straight.state_dict(), straight.scheduler.state_dict())
    _train(adapter, straight, 4, 9)

    flat_optimizer, resumed, reference = _pair(config)
    for one, weights in ((flat_optimizer, resumed), (reference, reference.adapter)):
        # From a file each time: what is shared inside it stays shared.
        states, schedule = torch.load(io.BytesIO(saved), weights_only=True)
        (one if isinstance(one, FlatOptimizer) else one.optimizer).load_state_dict(states)
        one.scheduler.load_state_dict(schedule)
        weights.flat.copy_(half)
        _train(weights, one, 4, 9)
        assert torch.equal(weights.flat, adapter.flat)


def test_state_of_a_parameter_a_matrix_goes_into_one_for_all(make: Make) -> None:
    flat_optimizer, _, reference = _pair(make(optimizer="adamw_8bit"))
    _train(reference.adapter, reference, 0, 4)
    states = torch.load(io.BytesIO(_on_disk(reference.optimizer.state_dict())), weights_only=True)
    flat_optimizer.load_state_dict(states[0])
    assert _same(flat_optimizer.state_dict(), reference.optimizer.state_dict())


def test_there_is_one_parameter_where_that_changes_nothing(make: Make) -> None:
    def parameters(features: int, **change: Any) -> int:
        config = make(**change)
        return sum(
            len(group["params"]) for group in FlatOptimizer(_adapter(config, features), config, LENGTH).param_groups
        )

    assert parameters(40, optimizer="adamw_torch") == 1
    assert parameters(64, optimizer="adamw_8bit") == 1
    assert parameters(40, optimizer="adamw_8bit") == 16
    assert parameters(64, optimizer="adamw_torch", loraplus_ratio=2.0) == 16


def _on_disk(*states: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(states, file)
    return file.getvalue()
