"""The low-rank kernels against loops over adapters and modules in plain torch.

Skipped where there is neither a GPU nor Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.support.triton import DEVICE, IS_NOWHERE, WHY_NOT, mended_interpreter
from trials.config import Hyperparameters
from trials.engine.kernels import torch_ops
from trials.engine.lora.adapter import Adapter
from trials.model.dropout import feature_keys, token_keys

if IS_NOWHERE:
    pytest.skip(WHY_NOT, allow_module_level=True)

from trials.engine.lora import triton_lora as triton_lowrank
from trials.engine.lora.triton_lora import HIGH_RANKS, LOW_RANKS, Noise, Place, Settings, Tiling, group_table

__all__ = ["mended_interpreter"]

MODULES = ("q_proj", "k_proj", "v_proj")
NAMES = [f"model.layers.{{}}.self_attn.{module}" for module in MODULES]
WIDTH, OUTS = (1072, (1048, 264, 272)) if DEVICE.type == "cuda" else (104, (72, 40, 48))
LAYERS = 3
ONE_ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 1e-5}
RATES = (0.05, 0.0, 0.5)
SMALL = Settings(Tiling(16, 32, 4, 2), Tiling(32, 16, 4, 1), Tiling(16, 64, 4, 2), programs=10**6)
"""Sums of `dropped_inner` split, other tiles, where the usual ones leave most sums whole."""


@dataclass(frozen=True)
class Member:
    """One adapter's tokens: so many, with these modules, after a gap that belongs to none."""

    rank: int
    tokens: int
    modules: Sequence[str] = MODULES
    gap: int = 0


ONE = [Member(16, 77)]
EIGHT = [
    Member(4, 33),
    Member(8, 1, ("q_proj", "v_proj")),
    Member(16, 64, ("k_proj",), gap=5),
    Member(64, 70),
    Member(96, 19, ("v_proj", "q_proj")),
    Member(16, 0),
    Member(4, 3, ("v_proj",)),
    Member(8, 17, gap=3),
]


class Case:
    """A group's tensors in one micro-step, and what comes out of them by plain torch."""

    def __init__(
        self,
        members: Sequence[Member],
        dtype: torch.dtype,
        *,
        drops: bool,
        settings: Settings = HIGH_RANKS,
    ) -> None:
        torch.manual_seed(5)
        self.adapters = [adapter_of(member, seed) for seed, member in enumerate(members)]
        self.places, self.columns = places_of(members, self.adapters)
        self.tokens = sum(member.tokens + member.gap for member in members) + 2
        self.x, self.dx = (torch.randn(self.tokens, WIDTH, device=DEVICE, dtype=dtype) for _ in range(2))
        self.a = torch.randn(LAYERS, self.columns, WIDTH, device=DEVICE, dtype=dtype)
        self.inner, self.dinner = (torch.randn(self.tokens, self.columns, device=DEVICE, dtype=dtype) for _ in range(2))
        # Views of one tensor, as of queries, keys and values.
        self.dy = torch.split(torch.randn(self.tokens, sum(OUTS), device=DEVICE, dtype=dtype), OUTS, 1)
        self.drops, self.layer = drops, 1
        self.rates = torch.tensor(RATES, dtype=torch.float64)[torch.arange(self.tokens) // 30 % len(RATES)]
        numbers = torch.arange(self.tokens)
        self.keys = token_keys(3, 7, numbers // 9, numbers % 9).to(DEVICE)
        self.table = group_table(self.places, LAYERS, DEVICE, settings)

    @property
    def thresholds(self) -> Tensor:
        return (self.rates * 2**32).long().to(DEVICE)

    @property
    def scales(self) -> Tensor:
        return (1 / (1 - self.rates)).float().to(DEVICE)

    def noise(self) -> Noise | None:
        if not self.drops:
            return None
        keys = triton_lowrank.stacked_keys([name.format(self.layer) for name in NAMES], WIDTH, DEVICE)
        return Noise(self.keys, keys, self.thresholds, self.scales)

    def factors(self, part: int) -> Tensor:
        if not self.drops:
            return torch.ones(self.tokens, WIDTH, device=DEVICE)
        keys = feature_keys(NAMES[part].format(self.layer), WIDTH, DEVICE)
        return torch_ops.noise(self.keys, keys, self.thresholds, self.scales)

    def read(self, part: int) -> Tensor:
        return torch_ops.drop(self.x, self.factors(part)).double()

    def blocks(self) -> Iterator[tuple[Place, slice, slice]]:
        for place in self.places:
            yield place, slice(place.start, place.end), slice(place.column, place.column + place.adapter.rank)

    def found_inner(self) -> Tensor:
        found = torch.zeros_like(self.inner)
        triton_lowrank.dropped_inner(self.x, self.a[self.layer], self.noise(), self.table, found)
        return found

    def found_dx(self, factor: float = 1.0) -> Tensor:
        dx = self.dx.clone()
        triton_lowrank.add_dropped_input_gradient(dx, self.dinner, self.a[self.layer], self.noise(), self.table, factor)
        return dx

    def found_gradients(self, factor: float = 1.0) -> list[Tensor]:
        before = [adapter.gradient.clone() for adapter in self.adapters]
        triton_lowrank.add_weight_gradients(
            self.x, self.inner, self.dy, self.dinner, self.noise(), self.table, self.layer, factor
        )
        found = [adapter.gradient.clone() for adapter in self.adapters]
        for adapter, gradient in zip(self.adapters, before, strict=True):
            adapter.gradient.copy_(gradient)
        return found

    def spoil(self, adapter: Adapter) -> None:
        """Nothing of this adapter's is finite any more."""
        for place, tokens, columns in self.blocks():
            if place.adapter is adapter:
                for tensor in (self.x, self.dinner, self.inner, *self.dy):
                    tensor[tokens] = torch.inf
                self.a[:, columns] = torch.nan


def adapter_of(member: Member, seed: int) -> Adapter:
    targets = [
        (name.format(layer), WIDTH, out) for layer in range(LAYERS) for name, out in zip(NAMES, OUTS, strict=True)
    ]
    hp = Hyperparameters(epochs=1.0, lora_rank=member.rank, lora_alpha=7 + seed, target_modules=tuple(member.modules))
    adapter = Adapter(targets, hp, seed, torch.empty(0, device=DEVICE))
    adapter.gradient.copy_(torch.randn(adapter.gradient.shape))
    return adapter


def places_of(members: Sequence[Member], adapters: Sequence[Adapter]) -> tuple[list[Place], int]:
    """Ranks lie module by module, as in `lowrank`."""
    places, column = [], 0
    for part, module in enumerate(MODULES):
        start = 0
        for member, adapter in zip(members, adapters, strict=True):
            start += member.gap
            if module in member.modules:
                places.append(
                    Place(adapter, NAMES[part], part, start, start + member.tokens, column, 0.3 + adapter.scale)
                )
                column += member.rank
            start += member.tokens
    return places, column


def close(found: Tensor, expected: Tensor, size: float) -> bool:
    """One rounding apart, and what a float32 sum of values of such a size loses."""
    tolerance = ONE_ROUNDING[found.dtype] * expected.abs() + 1e-6 * size
    return bool(torch.all((found.double() - expected).abs() <= tolerance))


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=[(ONE, True), (EIGHT, True), (EIGHT, False)], ids=["one", "eight", "eight, nothing dropped"])
def members(request: pytest.FixtureRequest) -> tuple[list[Member], bool]:
    return request.param


@pytest.fixture(
    params=[LOW_RANKS, HIGH_RANKS, SMALL],
    ids=["low", "high", "small"],
)
def case(request: pytest.FixtureRequest, members: tuple[list[Member], bool], dtype: torch.dtype) -> Case:
    return Case(members[0], dtype, drops=members[1], settings=request.param)


def test_inner_products_of_dropped_inputs(case: Case) -> None:
    expected = torch.zeros(case.tokens, case.columns, dtype=torch.float64, device=DEVICE)
    for place, tokens, columns in case.blocks():
        product = case.read(place.part)[tokens] @ case.a[case.layer, columns].double().T
        expected[tokens, columns] = place.scale * product
    assert close(case.found_inner(), expected, 40 * WIDTH**0.5)


def test_gradient_of_inputs(case: Case) -> None:
    expected = case.dx.double()
    for place, tokens, columns in case.blocks():
        product = case.dinner[tokens, columns].double() @ case.a[case.layer, columns].double()
        expected[tokens] += 0.7 * product * case.factors(place.part)[tokens]
    assert close(case.found_dx(0.7), expected, 100.0)


def test_gradients_of_weights_are_added(case: Case) -> None:
    expected = {id(adapter): adapter.gradient.clone() for adapter in case.adapters}
    for place, tokens, columns in case.blocks():
        gradient = place.adapter.gradients[place.module.format(case.layer)]
        a = case.dinner[tokens, columns].double().T @ case.read(place.part)[tokens]
        b = case.dy[place.part][tokens].double().T @ case.inner[tokens, columns].double()
        for total, product in ((gradient.a, a), (gradient.b, b)):
            at = total.storage_offset()
            expected[id(place.adapter)][at : at + total.numel()] += 0.7 * product.float().flatten()
    for adapter, found in zip(case.adapters, case.found_gradients(0.7), strict=True):
        assert close(found, expected[id(adapter)].double(), 100.0)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_every_layer_has_its_own_gradients(layer: int) -> None:
    case = Case(EIGHT, torch.float32, drops=True)
    case.layer = layer
    for adapter, found in zip(case.adapters, case.found_gradients(), strict=True):
        changed = (found != adapter.gradient).view(LAYERS, -1)
        assert not changed[[other for other in range(LAYERS) if other != layer]].any()
        assert changed[layer].any() or all(p.start == p.end for p in case.places if p.adapter is adapter)


@pytest.mark.parametrize(
    "settings",
    [LOW_RANKS, HIGH_RANKS, SMALL],
    ids=["low", "high", "small"],
)
def test_infinities_stay_with_their_adapter(dtype: torch.dtype, settings: Settings) -> None:
    case = Case(EIGHT, dtype, drops=True, settings=settings)
    before = case.found_inner(), case.found_dx(), case.found_gradients()
    spoilt = case.adapters[3]
    case.spoil(spoilt)
    inner, dx, gradients = case.found_inner(), case.found_dx(), case.found_gradients()
    others = torch.ones(case.tokens, dtype=torch.bool, device=DEVICE)
    for place, tokens, _ in case.blocks():
        others[tokens] &= place.adapter is not spoilt
    assert torch.equal(inner[others], before[0][others])
    assert torch.equal(dx[others], before[1][others])
    assert not dx[~others].isfinite().all(1).any()
    for adapter, found, expected in zip(case.adapters, gradients, before[2], strict=True):
        assert torch.equal(found, expected) is (adapter is not spoilt)


def test_no_tokens_no_work() -> None:
    case = Case([Member(8, 0, gap=4)], torch.float32, drops=True)
    assert not case.found_inner().any()
    assert torch.equal(case.found_dx(), case.dx)
    assert torch.equal(case.found_gradients()[0], case.adapters[0].gradient)


@pytest.mark.parametrize(
    ("widths", "dtype", "said"), [((8, 16, 8), torch.float32, "same distance"), ((8, 8, 8), torch.float64, "float64")]
)
def test_gradients_elsewhere_are_refused(widths: tuple[int, ...], dtype: torch.dtype, said: str) -> None:
    targets = [(NAMES[0].format(layer), width, 8) for layer, width in enumerate(widths)]
    hp = Hyperparameters(epochs=1.0, target_modules=("q_proj",))
    adapter = Adapter(targets, hp, 0, torch.empty(0, device=DEVICE, dtype=dtype))
    with pytest.raises(ValueError, match=said):
        group_table([Place(adapter, NAMES[0], 0, 0, 9, 0, 1.0)], len(widths), DEVICE)
