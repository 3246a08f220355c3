"""A trial's optimizer and schedule, against those of TRL's trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from search_spaces.schema import Recipe
from tests.support.small_splits import first_rows
from trials.data.dataset import TrialData
from trials.engine.optim.build import build_optimizer
from trials.model.loading import attach_adapter, load_base
from trials.records.trial_dir import TrialDir
from trials.schedule import TrialLength
from trials.trl.trainer import EvaluationTimes, build_trainer

LENGTH = TrialLength(steps=7, tokens=10**9)
Built = tuple[list[torch.nn.Parameter], torch.optim.Optimizer, LRScheduler]
CASES: list[dict[str, Any]] = [
    {"optimizer": "adamw_torch", "scheduler": "cosine", "warmup_fraction": 0.2},
    {"optimizer": "adamw_torch_fused", "scheduler": "linear", "warmup_fraction": 0.0, "loraplus_ratio": 4.0},
    {"optimizer": "adamw_torch", "scheduler": "constant", "weight_decay": 0.3, "loraplus_ratio": 1.5},
    # At rank 64 a matrix is large enough to be kept in 8 bits.
    {"optimizer": "adamw_8bit", "scheduler": "cosine", "lora_rank": 64},
    {"optimizer": "paged_adamw_8bit", "scheduler": "constant_with_warmup", "lora_rank": 64, "loraplus_ratio": 2.0},
    {"optimizer": "paged_adamw_32bit", "scheduler": "linear"},
    {"optimizer": "adamw_torch", "scheduler": "inverse_sqrt", "warmup_fraction": 0.2},
]


def _step(built: Built, number: int) -> None:
    """One step, by gradients that are the same for the same number."""
    parameters, optimizer, scheduler = built
    generator = torch.Generator().manual_seed(number)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    scheduler.step()


class Pair:
    """The trainer's optimizer and ours, each over weights of its own that begin equal."""

    def __init__(self, theirs: Built, ours: Built) -> None:
        self.theirs, self.ours = theirs, ours

    def step(self, number: int) -> None:
        _step(self.theirs, number)
        _step(self.ours, number)

    def assert_equal(self) -> None:
        for one, other in zip(self.theirs[0], self.ours[0], strict=True):
            assert torch.equal(one, other)
        for one, other in zip(self.theirs[1:], self.ours[1:], strict=True):
            _assert_same(one.state_dict(), other.state_dict())


def _assert_same(one: Any, other: Any) -> None:
    """Nested containers of tensors and plain values, in the same order."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            _assert_same(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, twin in zip(one, other, strict=True):
            _assert_same(mine, twin)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture(params=CASES, ids=str)
def pair(
    request: pytest.FixtureRequest,
    small_recipe: Recipe,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> Pair:
    config = small_recipe.trial_config({"learning_rate": 1e-3, **request.param})
    model = attach_adapter(load_base(config.model), config.hyperparameters)
    rows, times = first_rows(small_data.train, 8), EvaluationTimes([10**9], lambda: False)
    trainer = build_trainer(model, tokenizer, rows, config, LENGTH, lambda *_: False, times, TrialDir(tmp_path))
    trainer.create_optimizer_and_scheduler(LENGTH.steps)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    twins = [(name, torch.nn.Parameter(parameter.detach().clone())) for name, parameter in named]
    optimizer, scheduler = build_optimizer(twins, config, LENGTH)
    theirs = ([parameter for _, parameter in named], trainer.optimizer, trainer.lr_scheduler)
    return Pair(theirs, ([parameter for _, parameter in twins], optimizer, scheduler))


def test_class_settings_steps_and_state_are_those_of_the_trainer(pair: Pair) -> None:
    assert type(pair.ours[1]) is type(pair.theirs[1])
    assert pair.ours[1].defaults == pair.theirs[1].defaults
    pair.assert_equal()
    for number in range(3):
        pair.step(number)
    assert len(pair.ours[1].state_dict()["state"]) == len(pair.ours[0])
    pair.assert_equal()


@pytest.mark.parametrize("into_ours", [True, False])
def test_the_state_of_either_goes_into_the_other(pair: Pair, tmp_path: Path, into_ours: bool) -> None:
    ahead, behind = (pair.theirs, pair.ours) if into_ours else (pair.ours, pair.theirs)
    for number in range(3):
        _step(ahead, number)
    for done, fresh in zip(ahead[0], behind[0], strict=True):
        fresh.data.copy_(done.data)
    for done, fresh in zip(ahead[1:], behind[1:], strict=True):
        torch.save(done.state_dict(), tmp_path / "state.pt")
        fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    pair.step(3)
    pair.assert_equal()
