"""The engine's element-wise operations as Triton kernels, one pass over memory each; they equal those of `torch_ops`.

Imported on a GPU only: Triton comes with torch's CUDA builds.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `torch_ops.rms_norm`."""
    y = torch.empty_like(x) if out is None else out
    rstd = torch.empty(len(x), dtype=torch.float32, device=x.device)
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    _rms_norm[(len(x),)](x, weight, y, rstd, x.stride(0), width, eps, True, block, num_warps=8)
    return y, rstd


def normed(x: Tensor, weight: Tensor, rstd: Tensor, out: Tensor | None = None) -> Tensor:
    """As `torch_ops.normed`."""
    y = torch.empty_like(x) if out is None else out
    width = x.shape[1]
    _rms_norm[(len(x),)](x, weight, y, rstd, x.stride(0), width, 0.0, False, triton.next_power_of_2(width), num_warps=8)
    return y


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, dx: Tensor) -> None:
    """As `torch_ops.rms_norm_backward`."""
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    _rms_norm_backward[(len(x),)](dy, x, weight, rstd, dx, width, block, num_warps=8)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> None:
    """As `torch_ops.rotate`."""
    tokens, heads, size = x.shape
    block = triton.next_power_of_2(heads)
    _rotate[(tokens,)](x, cos, sin, x.stride(0), heads, size // 2, block, inverse, num_warps=4)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """As `torch_ops.swiglu`."""
    h = torch.empty_like(gate)
    _swiglu[(triton.cdiv(gate.numel(), _TILE),)](gate, up, h, gate.numel(), _TILE, num_warps=4)
    return h


def swiglu_backward(dh: Tensor, gate: Tensor, up: Tensor) -> None:
    """As `torch_ops.swiglu_backward`."""
    _swiglu_backward[(triton.cdiv(gate.numel(), _TILE),)](dh, gate, up, gate.numel(), _TILE, num_warps=4)


def drop(x: Tensor, token_keys: Tensor, feature_keys: Tensor, thresholds: Tensor, scales: Tensor) -> Tensor:
    """As `torch_ops.drop`."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    tokens, width = x.shape
    grid = (tokens, triton.cdiv(width, _TILE))
    _drop[grid](x, token_keys, feature_keys, thresholds, scales, y, x.stride(0), width, _TILE, num_warps=4)
    return y


def dequantize(packed: Tensor, codes: Tensor, scales: Any, out: Tensor) -> None:
    """NF4 with double quantisation to `out`, as `bitsandbytes.functional.dequantize_4bit` does in two kernels and an add.

    `codes` are the 16 values of NF4; `scales` is bitsandbytes' quantisation state.
    """
    state = scales.state2
    tile = 4096
    _dequantize[(triton.cdiv(out.numel(), tile),)](
        packed, codes, scales.absmax, state.code, state.absmax, scales.offset, out, out.numel(),
        scales.blocksize, state.blocksize, tile, num_warps=8,
    )  # fmt: skip


@triton.jit
def _rms_norm(x, weight, y, rstd, stride, width, eps, measure: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0)
    wide = values.to(tl.float32)
    if measure:
        r = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
        tl.store(rstd + row, r)
    else:
        r = tl.load(rstd + row)
    gain = tl.load(weight + columns, mask=inside, other=0.0)
    tl.store(y + row * width + columns, (wide * r).to(values.dtype) * gain, mask=inside)


@triton.jit
def _rms_norm_backward(dy, x, weight, rstd, dx, width, block: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    at = row * width + columns
    scaled = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    scaled *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    r = tl.load(rstd + row)
    hat = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * r
    mean = tl.sum(scaled * hat, 0) / width
    before = tl.load(dx + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + at, before + (scaled - hat * mean) * r, mask=inside)


@triton.jit
def _rotate(x, cos, sin, stride, heads, half: tl.constexpr, block: tl.constexpr, inverse: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, half)
    head = tl.arange(0, block)[:, None]
    inside = head < heads
    first_at = x + token * stride + head * (2 * half) + lanes[None, :]
    first = tl.load(first_at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(first_at + half, mask=inside, other=0.0).to(tl.float32)
    c1 = tl.load(cos + token * 2 * half + lanes)[None, :].to(tl.float32)
    c2 = tl.load(cos + token * 2 * half + half + lanes)[None, :].to(tl.float32)
    s1 = tl.load(sin + token * 2 * half + lanes)[None, :].to(tl.float32)
    s2 = tl.load(sin + token * 2 * half + half + lanes)[None, :].to(tl.float32)
    if inverse:
        tl.store(first_at, first * c1 + second * s2, mask=inside)
        tl.store(first_at + half, second * c2 - first * s1, mask=inside)
    else:
        tl.store(first_at, first * c1 - second * s1, mask=inside)
        tl.store(first_at + half, second * c2 + first * s2, mask=inside)


@triton.jit
def _swiglu(gate, up, h, count, tile: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0)
    tl.store(h + at, (g * tl.sigmoid(g)).to(u.dtype) * u, mask=inside)


@triton.jit
def _swiglu_backward(dh, gate, up, count, tile: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(dh + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    active = g * sigmoid
    tl.store(gate + at, d * u * (active * (1 - sigmoid) + sigmoid), mask=inside)
    tl.store(up + at, d * active, mask=inside)


@triton.jit
def _drop(x, token_keys, feature_keys, thresholds, scales, y, stride, width, tile: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = columns < width
    hashed = tl.load(feature_keys + columns, mask=inside, other=0).to(tl.uint32)
    hashed ^= tl.load(token_keys + token).to(tl.uint32)
    hashed ^= hashed >> 16
    hashed *= 0x85EBCA6B
    hashed ^= hashed >> 13
    hashed *= 0xC2B2AE35
    hashed ^= hashed >> 16
    kept = hashed >= tl.load(thresholds + token).to(tl.uint32)
    values = tl.load(x + token * stride + columns, mask=inside, other=0.0)
    tl.store(y + token * width + columns, tl.where(kept, values * tl.load(scales + token), 0.0), mask=inside)


@triton.jit
def _dequantize(  # type: ignore[no-untyped-def]  # noqa: ANN202
    packed, codes, absmax, absmax_code, absmax_scale, offset, out, count,  # noqa: ANN001
    blocksize: tl.constexpr, outer: tl.constexpr, tile: tl.constexpr,  # noqa: ANN001
):  # fmt: skip
    pairs: tl.constexpr = tile // 2
    at = tl.program_id(0).to(tl.int64) * pairs + tl.arange(0, pairs)
    inside = at * 2 < count
    both = tl.load(packed + at, mask=inside, other=0).to(tl.int32)
    block = at * 2 // blocksize
    code = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
    scale = tl.load(absmax_code + code) * tl.load(absmax_scale + block // outer, mask=inside, other=0.0)
    scale += tl.load(offset)
    high = tl.load(codes + (both >> 4)) * scale
    low = tl.load(codes + (both & 15)) * scale
    values = tl.interleave(high, low).to(out.dtype.element_ty)
    where = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    tl.store(out + where, values, mask=where < count)
