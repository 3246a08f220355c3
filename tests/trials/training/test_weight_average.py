"""The average of weights over the steps of a trial."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trials.config import Hyperparameters
from trials.training.weight_average import WeightAverage, average_of

SHARE = 0.2


def _trained(steps: int, share: float = SHARE) -> tuple[WeightAverage, list[nn.Parameter], list[torch.Tensor]]:
    """Two weights that take random values at every step; and those of the first, step by step."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    average, seen = WeightAverage(weights, share), []
    for step in range(1, steps + 1):
        for weight in weights:
            weight.data.copy_(torch.randn(weight.shape, generator=generator))
        seen.append(weights[0].detach().double().clone())
        average.update(step)
    return average, weights, seen


def test_the_first_step_s_weights_are_the_first_average() -> None:
    average, weights, _ = _trained(1)
    assert [torch.equal(value, weight) for value, weight in zip(average.values, weights, strict=True)] == [True, True]


def test_it_is_the_weighted_mean_of_all_steps() -> None:
    average, _, seen = _trained(30)
    expected = seen[0]
    for step, weight in enumerate(seen[1:], start=2):
        newest = 1 / (1 + SHARE * (step - 1))
        expected = (1 - newest) * expected + newest * weight
    assert torch.allclose(average.values[0].double(), expected, atol=1e-6)


@pytest.mark.parametrize("steps", [100, 1000])
def test_it_remembers_about_the_same_share_at_any_length(steps: int) -> None:
    # The mean age of what is averaged, in shares of the trial: h / (1 + h) in the limit of many steps.
    counter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average = WeightAverage([counter], SHARE)
    for step in range(1, steps + 1):
        counter.data.fill_(step)
        average.update(step)
    assert (steps - average.values[0].item()) / steps == pytest.approx(SHARE / (1 + SHARE), rel=0.05)


def test_averages_are_wide() -> None:
    narrow, wide = (nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.bfloat16, torch.float64))
    average = WeightAverage([narrow, wide], SHARE)
    average.update(1)
    assert [value.dtype for value in average.values] == [torch.float32, torch.float64]


def test_inside_the_block_it_is_in_the_weights_place_and_nothing_is_changed_by_that() -> None:
    average, weights, _ = _trained(5)
    before, averages = [weight.detach().clone() for weight in weights], [value.clone() for value in average.values]
    with average.in_place():
        assert all(torch.equal(weight, value) for weight, value in zip(weights, averages, strict=True))
    assert all(torch.equal(weight, value) for weight, value in zip(weights, before, strict=True))
    assert all(torch.equal(value, expected) for value, expected in zip(average.values, averages, strict=True))


def test_after_an_error_in_the_block_the_weights_are_back() -> None:
    average, weights, seen = _trained(5)
    with pytest.raises(torch.OutOfMemoryError), average.in_place():
        raise torch.OutOfMemoryError
    assert torch.equal(weights[0].double(), seen[-1])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_weights_that_are_not_finite_make_it_so_for_good(broken: float) -> None:
    weight = nn.Parameter(torch.zeros(1))
    average = WeightAverage([weight], SHARE)
    for step, value in enumerate((1.0, broken, 1.0, 1.0), start=1):
        weight.data.fill_(value)
        average.update(step)
    assert not torch.isfinite(average.values[0]).item()


def test_none_is_kept_where_none_is_asked_for() -> None:
    assert average_of([torch.zeros(1)], Hyperparameters(epochs=1.0)) is None
