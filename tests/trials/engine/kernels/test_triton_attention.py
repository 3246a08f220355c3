"""The attention kernels against softmax in plain torch, row by row.

Run where there is a GPU, or Triton's interpreter (see `tests.support.triton`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.support.triton import DEVICE, GPU, IS_NOWHERE, WHY_NOT, mended_interpreter

if IS_NOWHERE:
    pytest.skip(WHY_NOT, allow_module_level=True)

from trials.engine.kernels import triton_attention
from trials.engine.kernels.triton_attention import LARGE, SMALL, WIDE, Settings

__all__ = ["mended_interpreter"]

ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 2**-24}
LENGTHS = [1, 130, 2, 63, 64, 65, 257]


@dataclass
class Case:
    """Views with strides of their own, in memory full of NaN; `found` and `expected` give out, dq, dk and dv."""

    lengths: list[int]
    qkv: Tensor
    dout: Tensor
    key_heads: int
    settings: Settings

    def heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return torch.split(qkv, [self.dout.shape[1], self.key_heads, self.key_heads], 1)

    def found(self, most_rows: int | None = None, before: list[int] | None = None) -> tuple[Tensor, ...]:
        """`before`: the tables were made for rows of these lengths, and are overwritten."""
        q, k, v = self.heads(self.qkv.clone(memory_format=torch.preserve_format))
        group = q.shape[1] // k.shape[1]
        blocks = triton_attention.blocks_of(before or self.lengths, group, self.settings, DEVICE, most_rows)
        blocks.overwrite(triton_attention.blocks_of(self.lengths, group, self.settings, DEVICE, most_rows))
        unchanged = q.clone()
        dq = torch.full(q.shape, torch.nan, dtype=q.dtype, device=DEVICE)
        out = torch.full((len(q), q.shape[1] + 1, q.shape[2]), torch.nan, dtype=q.dtype, device=DEVICE)[:, 1:]
        lse = triton_attention.forward(q, k, v, out, blocks)
        triton_attention.backward(self.dout, q, k, v, out, lse, blocks, dq)
        assert torch.equal(q.nan_to_num(), unchanged.nan_to_num())
        return out, dq, k, v

    def expected(self) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().double().requires_grad_() for tensor in self.heads(self.qkv)]
        rows = zip(*(torch.split(tensor, self.lengths) for tensor in leaves), strict=True)
        out = torch.cat([_softmax(*row) for row in rows])
        return out.detach(), *torch.autograd.grad(out, leaves, self.dout.double())


def _softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (tensor.transpose(0, 1) for tensor in (q, k, v))
    k, v = (tensor.repeat_interleave(len(q) // len(k), 0) for tensor in (k, v))
    scores = q @ k.transpose(1, 2) / q.shape[2] ** 0.5
    future = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1)


def case(
    lengths: list[int], *, group: int, size: int, dtype: torch.dtype, settings: Settings, key_heads: int = 2
) -> Case:
    torch.manual_seed(0)
    heads, tokens = group * key_heads, sum(lengths)
    wide = torch.randn(tokens, heads + 2 * key_heads + 3, size, device=DEVICE).to(dtype)
    dout = torch.randn(tokens, heads + 2, size, device=DEVICE).to(dtype)
    return Case(lengths, wide[:, 1:-2], dout[:, 1:-1], key_heads, settings)


def error(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[float]:
    """The greatest differences, in roundings of the greatest values."""
    return [
        float((a.double() - b).abs().max() / b.abs().max() / ROUNDING[a.dtype])
        for a, b in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("settings", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("group", [1, 3, 4])
def test_half_precision(settings: Settings, group: int) -> None:
    each = case(LENGTHS, group=group, size=64 if GPU else 16, dtype=torch.bfloat16, settings=settings)
    assert max(error(each.found(), each.expected())) < 4


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("group", [1, 4])
def test_float32(group: int, size: int) -> None:
    each = case(LENGTHS if GPU else [5, 1, 70], group=group, size=size, dtype=torch.float32, settings=WIDE)
    assert max(error(each.found(), each.expected())) < 32


@pytest.mark.parametrize("size", [32, 128])
def test_sizes_in_half_precision(size: int) -> None:
    settings = triton_attention.settings_for(size, torch.bfloat16, DEVICE)
    each = case(
        [65, 257] if GPU else [33, 65], group=4, size=size, dtype=torch.bfloat16, settings=settings, key_heads=1
    )
    assert max(error(each.found(), each.expected())) < 4


def test_large_scores_do_not_overflow() -> None:
    each = case([40, 90], group=2, size=16, dtype=torch.float32, settings=WIDE)
    each.qkv[:, : -2 * each.key_heads] *= 100
    found, expected = each.found(), each.expected()
    assert all(torch.isfinite(tensor).all() for tensor in found)
    assert error(found, expected)[0] < 2**11


@pytest.mark.parametrize("settings", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
def test_a_row_that_is_not_finite_leaves_others_equal_to_the_bit(settings: Settings, poison: float) -> None:
    lengths = [70, 33, 65]
    each = case(lengths, group=4, size=16, dtype=torch.bfloat16, settings=settings, key_heads=1)
    clean = each.found()
    for tensor in (each.qkv, each.dout):
        tensor[70:103] = poison
    for before, after in zip(clean, each.found(), strict=True):
        for a, b in zip(torch.split(before, lengths)[::2], torch.split(after, lengths)[::2], strict=True):
            assert torch.equal(a, b)
        assert not torch.isfinite(after[70:103]).all()


def test_the_future_of_a_row_counts_for_nothing() -> None:
    each = case([90], group=4, size=16, dtype=torch.bfloat16, settings=LARGE, key_heads=1)
    out, *_ = each.found()
    each.qkv[40:] *= 3
    assert torch.equal(each.found()[0][:40], out[:40])


@pytest.mark.parametrize("settings", [LARGE, SMALL, WIDE], ids=["large", "small", "wide"])
def test_tables_of_a_fixed_size_say_the_same(settings: Settings) -> None:
    each = case([70, 33, 1, 65], group=3, size=16, dtype=torch.float32, settings=settings, key_heads=1)
    expected = each.found()
    for before in ([169], [40, 40, 40, 40, 9], [1] * 9 + [160]):
        for found, wanted in zip(each.found(most_rows=10, before=before), expected, strict=True):
            assert torch.equal(found, wanted)


def test_twice_the_same_bits() -> None:
    each = case([130, 65], group=4, size=32, dtype=torch.bfloat16, settings=LARGE)
    assert all(torch.equal(a, b) for a, b in zip(each.found(), each.found(), strict=True))


def test_nothing_is_written_beside_the_views() -> None:
    each = case([17, 40], group=4, size=16, dtype=torch.bfloat16, settings=LARGE, key_heads=1)
    base = each.qkv._base
    assert base is not None
    edges = base[:, [0, -2, -1]].clone()
    q, k, v = each.heads(each.qkv)
    out = torch.full((57, 6, 16), 7.0, dtype=torch.bfloat16, device=DEVICE)
    dq = torch.empty(q.shape, dtype=torch.bfloat16, device=DEVICE)
    blocks = triton_attention.blocks_of([17, 40], 4, LARGE, DEVICE)
    lse = triton_attention.forward(q, k, v, out[:, 1:5], blocks)
    triton_attention.backward(each.dout, q, k, v, out[:, 1:5], lse, blocks, dq)
    assert torch.equal(base[:, [0, -2, -1]], edges)
    assert bool((out[:, [0, 5]] == 7).all())


def test_logarithms_are_of_base_2() -> None:
    each = case([1, 20], group=2, size=16, dtype=torch.float32, settings=WIDE)
    q, k, v = each.heads(each.qkv)
    blocks = triton_attention.blocks_of([1, 20], 2, WIDE, DEVICE)
    lse = triton_attention.forward(q, k, v, torch.empty(q.shape, device=DEVICE), blocks)
    scores = torch.einsum("hs,khs->hk", q[20], k[1:].repeat_interleave(2, 1)) / 4
    torch.testing.assert_close(lse[:, 20].flatten(), scores.exp().sum(1).log2())


def test_every_line_and_key_is_in_one_block() -> None:
    tile = LARGE.forward
    settings = replace(LARGE, dq=replace(tile, lines=tile.lines // 2))
    blocks = triton_attention.blocks_of([300, 1, 64], 3, settings, DEVICE)
    for table, step, of_token in (
        (blocks.forward, settings.forward.lines, 3),
        (blocks.dq, settings.dq.lines, 3),
        (blocks.dkdv, settings.dkdv.keys, 1),
    ):
        places = [
            (row, place)
            for first, row, length in table.tolist()
            for place in range(first, min(first + step, length * of_token))
        ]
        expected = [
            (row, place) for row, length in ((0, 300), (300, 1), (301, 64)) for place in range(length * of_token)
        ]
        assert sorted(places) == expected
    assert blocks.forward[0, 0] == max(blocks.forward[:, 0])
    assert blocks.dkdv[0].tolist() == [0, 0, 300]


def test_what_does_not_go_together_is_refused() -> None:
    each = case([5], group=4, size=16, dtype=torch.bfloat16, settings=LARGE)
    q, k, v = each.heads(each.qkv)
    blocks = triton_attention.blocks_of([5], 2, LARGE, DEVICE)
    with pytest.raises(ValueError, match="go together"):
        triton_attention.forward(q, k, v, torch.empty_like(q), blocks)
    blocks = triton_attention.blocks_of([5], 4, LARGE, DEVICE)
    with pytest.raises(ValueError, match="side by side"):
        triton_attention.forward(
            q, k, v, torch.empty(8, 5, 16, dtype=torch.bfloat16, device=DEVICE).transpose(0, 1), blocks
        )
    with pytest.raises(ValueError, match="power of 2"):
        triton_attention.forward(q[..., :8], k[..., :8], v[..., :8], q[..., :8], blocks)
    with pytest.raises(ValueError, match="lse"):
        triton_attention.backward(each.dout, q, k, v, q, torch.empty(8, 5, device=DEVICE), blocks, torch.empty_like(q))


def test_settings_follow_rows_heads_and_type() -> None:
    cpu = torch.device("cpu")
    assert triton_attention.settings_for(128, torch.bfloat16, cpu) is LARGE
    assert triton_attention.settings_for(256, torch.bfloat16, cpu) is WIDE
    assert triton_attention.settings_for(64, torch.float32, cpu) is WIDE
