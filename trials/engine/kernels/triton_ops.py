"""Element-wise operations of `torch_ops` as Triton kernels, with one pass over memory each and equal results.

Imported on a GPU only: Triton comes with torch's CUDA builds.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024
_BLOCKS = 64
_DEQUANTIZE_WARPS = 4


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute `torch_ops.rms_norm`; `x` and `residual` must be contiguous."""
    rstd = torch.empty(len(x), dtype=torch.float32, device=x.device)
    return _launch_norm(x, weight, rstd, eps, residual), rstd


def normed(x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """Compute `torch_ops.normed`."""
    return _launch_norm(x, weight, rstd, None, None)


def _launch_norm(x: Tensor, weight: Tensor, rstd: Tensor, eps: float | None, residual: Tensor | None) -> Tensor:
    y = torch.empty_like(x)
    width = x.shape[1]
    measures, adds = eps is not None, residual is not None
    block = triton.next_power_of_2(width)
    _rms_norm[(len(x),)](
        x, residual if adds else x, weight, y, rstd, width, eps or 0.0, measures, adds, block, num_warps=8
    )
    return y


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, dx: Tensor) -> None:
    """Compute `torch_ops.rms_norm_backward`."""
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    _rms_norm_backward[(len(x),)](dy, x, weight, rstd, dx, width, block, num_warps=8)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, inverse: bool = False) -> None:
    """Compute `torch_ops.rotate`."""
    tokens, heads, size = x.shape
    block = triton.next_power_of_2(heads)
    _rotate[(tokens,)](x, cos, sin, out, x.stride(0), out.stride(0), heads, size // 2, block, inverse, num_warps=4)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Compute `torch_ops.swiglu`."""
    h = torch.empty_like(gate)
    _swiglu[(triton.cdiv(gate.numel(), _TILE),)](gate, up, h, gate.numel(), _TILE, num_warps=4)
    return h


def swiglu_backward(dh: Tensor, gate: Tensor, up: Tensor, *, restores: bool) -> None:
    """Compute `torch_ops.swiglu_backward`."""
    _swiglu_backward[(triton.cdiv(gate.numel(), _TILE),)](dh, gate, up, gate.numel(), restores, _TILE, num_warps=4)


def pair_table(codes: Tensor) -> Tensor:
    """Return a table [256] of the two values that each byte of packed weights encodes, as the halves of an int64.

    `codes` are the 16 values of NF4 in float32. A byte's upper half encodes the first value of the pair.
    """
    high, low = codes.repeat_interleave(16), codes.repeat(16)
    return torch.stack([high, low], 1).contiguous().view(torch.int64).squeeze(1)


def dequantize(packed: Tensor, pairs: Tensor, scales: Any, out: Tensor) -> None:
    """Dequantise doubly quantised NF4 into `out`, bit for bit as `bitsandbytes.functional.dequantize_4bit`.

    One kernel does all. `pairs` is from `pair_table`; `scales` is the quantisation state of bitsandbytes.
    """
    state, blocks = scales.state2, _BLOCKS
    _dequantize[(triton.cdiv(out.numel(), blocks * scales.blocksize),)](
        packed, pairs, scales.absmax, state.code, state.absmax, scales.offset, out, out.numel() // scales.blocksize,
        scales.blocksize // 2, state.blocksize, blocks, num_warps=_DEQUANTIZE_WARPS,
    )  # fmt: skip


@triton.jit
def _rms_norm(
    x, residual, weight, y, rstd, width, eps, measures: tl.constexpr, adds: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    at = row * width + columns
    values = tl.load(x + at, mask=inside, other=0.0)
    if adds:
        values += tl.load(residual + at, mask=inside, other=0.0)
        tl.store(x + at, values, mask=inside)
    wide = values.to(tl.float32)
    if measures:
        r = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
        tl.store(rstd + row, r)
    else:
        r = tl.load(rstd + row)
    gain = tl.load(weight + columns, mask=inside, other=0.0)
    tl.store(y + at, (wide * r).to(values.dtype) * gain, mask=inside)


@triton.jit
def _rms_norm_backward(dy, x, weight, rstd, dx, width, block: tl.constexpr):
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
def _rotate(
    x, cos, sin, out, stride, out_stride, heads, half: tl.constexpr, block: tl.constexpr, inverse: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, half)
    head = tl.arange(0, block)[:, None]
    inside = head < heads
    first_at = x + token * stride + head * (2 * half) + lanes[None, :]
    out_at = out + token * out_stride + head * (2 * half) + lanes[None, :]
    first = tl.load(first_at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(first_at + half, mask=inside, other=0.0).to(tl.float32)
    c1 = tl.load(cos + token * 2 * half + lanes)[None, :].to(tl.float32)
    c2 = tl.load(cos + token * 2 * half + half + lanes)[None, :].to(tl.float32)
    s1 = tl.load(sin + token * 2 * half + lanes)[None, :].to(tl.float32)
    s2 = tl.load(sin + token * 2 * half + half + lanes)[None, :].to(tl.float32)
    if inverse:
        tl.store(out_at, first * c1 + second * s2, mask=inside)
        tl.store(out_at + half, second * c2 - first * s1, mask=inside)
    else:
        tl.store(out_at, first * c1 - second * s1, mask=inside)
        tl.store(out_at + half, second * c2 + first * s2, mask=inside)


@triton.jit
def _swiglu(gate, up, h, count, tile: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0)
    tl.store(h + at, (g * tl.sigmoid(g)).to(u.dtype) * u, mask=inside)


@triton.jit
def _swiglu_backward(dh, gate, up, count, restores: tl.constexpr, tile: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    narrow_u = tl.load(up + at, mask=inside, other=0.0)
    u = narrow_u.to(tl.float32)
    d = tl.load(dh + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    active = g * sigmoid
    tl.store(gate + at, d * u * (active * (1 - sigmoid) + sigmoid), mask=inside)
    tl.store(up + at, d * active, mask=inside)
    if restores:
        tl.store(dh + at, active.to(narrow_u.dtype) * narrow_u, mask=inside)


@triton.jit
def _dequantize(
    packed, pairs, absmax, absmax_code, absmax_scale, offset, out, count,
    half: tl.constexpr, outer: tl.constexpr, blocks: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * blocks + tl.arange(0, blocks)
    inside = block < count
    code = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
    scale = tl.load(absmax_code + code) * tl.load(absmax_scale + block // outer, mask=inside, other=0.0)
    scale = (scale + tl.load(offset))[:, None]
    at = block[:, None] * half + tl.arange(0, half)[None, :]
    both = tl.load(pairs + tl.load(packed + at, mask=inside[:, None], other=0).to(tl.int32))
    high = (both & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True) * scale
    low = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True) * scale
    values = tl.interleave(high, low).to(out.dtype.element_ty)
    where = block[:, None] * (2 * half) + tl.arange(0, 2 * half)[None, :]
    tl.store(out + where, values, mask=inside[:, None])
