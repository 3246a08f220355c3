"""Causal attention over rows of unequal length that lie end to end, as Triton kernels, forward and backward.

The algorithm is FlashAttention-2's (arXiv 2307.08691): softmax online in the forward pass, recomputed in the backward
pass from its logarithm, one kernel for the queries' gradient and one for those of keys and values. Made for short rows:
a block of queries takes the heads that share a key head side by side, so that it spans few tokens, and little above
the diagonal is computed. Tables list the blocks, those with most work first. Nothing is added by atomics: the same
input gives the same bits.

A token and one of the query heads of a key head are a *line*; lines are numbered token by token from the row's first.

Imported on a GPU only: Triton comes with torch's CUDA builds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from trials.engine.kernels.sending import to_device_async
from trials.engine.support import HEAD_SIZES

_LARGE = (9, 10)
"""Major compute capabilities with 227 KiB of shared memory for a program."""


@dataclass(frozen=True)
class Tile:
    """How one kernel is cut and run. `lines` and `keys` are powers of 2, at least 16."""

    lines: int
    keys: int
    warps: int
    stages: int
    """Blocks of the inner loop that are in shared memory at once; from 3 on they are read ahead."""
    registers: int | None = None
    """The most that a thread may take, so that programs fit beside each other."""


@dataclass(frozen=True)
class Settings:
    """Of the three kernels: the forward pass, the queries' gradient, and those of keys and values."""

    forward: Tile
    dq: Tile
    dkdv: Tile


LARGE = Settings(forward=Tile(128, 64, 8, 2, 128), dq=Tile(128, 32, 8, 3, 128), dkdv=Tile(32, 64, 4, 4))
"""The fastest of a dozen for each kernel on an H100 with heads of 128, for rows of 260 tokens as for those of 2,048."""
SMALL = Settings(forward=Tile(64, 32, 4, 3), dq=Tile(64, 32, 4, 2), dkdv=Tile(32, 64, 8, 3))
"""Where there is less shared memory than an H100 has: at most 69 KiB on a 4090."""
WIDE = Settings(forward=Tile(32, 32, 4, 1), dq=Tile(32, 32, 8, 1), dkdv=Tile(32, 32, 8, 1))
"""For heads of 256 or values in float32."""


def settings_for(size: int, dtype: torch.dtype, device: torch.device) -> Settings:
    """For heads of `size`."""
    if size > 128 or dtype == torch.float32:
        return WIDE
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in _LARGE:
        return SMALL
    return LARGE


@dataclass(frozen=True)
class Blocks:
    """What each program works on, most work first.

    Tables are [blocks, 3], int32: a block's first line or key in its row, the row's first token, the row's length.
    """

    forward: Tensor
    """Of lines."""
    dq: Tensor
    """Of lines."""
    dkdv: Tensor
    """Of keys."""
    group: int
    """Query heads of a key head."""
    settings: Settings


def blocks_of(lengths: Sequence[int], group: int, settings: Settings, device: torch.device) -> Blocks:
    """From the rows' lengths in tokens; `group` is the number of query heads of a key head."""
    counts = torch.tensor(lengths, dtype=torch.int64)
    of_lines = {tile.lines: _line_blocks(counts, group, tile.lines) for tile in (settings.forward, settings.dq)}
    of_keys = _key_blocks(counts, settings.dkdv.keys)
    tables = [*of_lines.values(), of_keys]
    joined = to_device_async(torch.cat(tables).to(torch.int32), device)
    *there, keys = joined.split([len(table) for table in tables])
    lines = dict(zip(of_lines, there, strict=True))
    return Blocks(lines[settings.forward.lines], lines[settings.dq.lines], keys, group, settings)


def _line_blocks(lengths: Tensor, group: int, step: int) -> Tensor:
    table = _table(lengths, lengths * group, step)
    # A line attends to all before it.
    return table[table[:, 0].argsort(descending=True, stable=True)]


def _key_blocks(lengths: Tensor, step: int) -> Tensor:
    table = _table(lengths, lengths, step)
    return table[(table[:, 2] - table[:, 0]).argsort(descending=True, stable=True)]


def _table(lengths: Tensor, units: Tensor, step: int) -> Tensor:
    """Blocks of `step` of every row's so many `units`."""
    counts = (units + step - 1) // step
    row = torch.repeat_interleave(counts)
    first = (torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]) * step
    starts = lengths.cumsum(0) - lengths
    return torch.stack([first, starts[row], lengths[row]], 1)


def forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, blocks: Blocks) -> Tensor:
    """Attention of `q` to `k` and `v`, to `out`; gives what `backward` needs.

    `q` and `out` are [tokens, heads, size], `k` and `v` [tokens, key heads, size]; views whose tokens may be any
    distance apart, the values of one token's heads side by side. `size` is a power of 2 from 16 to 256.

    Returns:
        The base-2 logarithm of every softmax's denominator [key heads, tokens, heads of a key head], float32.

    Raises:
        ValueError: If a shape or layout is another.
    """
    _check(q, k, v, out, blocks)
    lse = torch.empty(k.shape[1], len(q), blocks.group, dtype=torch.float32, device=q.device)
    _forward[(k.shape[1], len(blocks.forward))](
        q, k, v, out, lse, blocks.forward, len(q), math.log2(math.e) / q.shape[2] ** 0.5,
        q.stride(0), k.stride(0), v.stride(0), out.stride(0), **_constants(q, blocks, blocks.settings.forward),
    )  # fmt: skip
    return lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, blocks: Blocks, dq: Tensor
) -> None:
    """Gradients, from `dout`, that of `out`: of `q` to `dq`, of `k` and `v` in their place.

    Shapes and layouts as in `forward`, whose `out` and result `lse` are given; `dq` shares no memory with the others.

    Raises:
        ValueError: If a shape or layout is another.
    """
    _check(q, k, v, out, blocks)
    _check(dout, k, v, dq, blocks)
    if lse.shape != (k.shape[1], len(q), blocks.group) or not lse.is_contiguous():
        raise ValueError("lse isn't what the forward pass gave")
    # Every line's product of `dout` and `out`, from the first kernel for the second.
    delta = torch.empty_like(lse)
    _query_gradient[(k.shape[1], len(blocks.dq))](
        dout, q, k, v, out, lse, delta, dq, blocks.dq, len(q), q.shape[2] ** -0.5, dout.stride(0), q.stride(0),
        k.stride(0), v.stride(0), out.stride(0), dq.stride(0), **_constants(q, blocks, blocks.settings.dq),
    )  # fmt: skip
    # Each block of keys and values is read by nobody else from here on: its gradients take its place.
    _key_gradients[(k.shape[1], len(blocks.dkdv))](
        dout, q, k, v, lse, delta, k, v, blocks.dkdv, len(q), q.shape[2] ** -0.5,
        dout.stride(0), q.stride(0), k.stride(0), v.stride(0), **_constants(q, blocks, blocks.settings.dkdv),
    )  # fmt: skip


def _check(q: Tensor, k: Tensor, v: Tensor, out: Tensor, blocks: Blocks) -> None:
    size = q.shape[2]
    if q.shape != out.shape or k.shape != v.shape or q.shape[1] != k.shape[1] * blocks.group or size != k.shape[2]:
        raise ValueError(f"shapes {[*q.shape]}, {[*k.shape]}, {[*v.shape]} and {[*out.shape]} don't go together")
    if size not in HEAD_SIZES:
        raise ValueError(f"heads of {size} aren't a power of 2 from 16 to 256")
    if any(tensor.stride()[1:] != (size, 1) for tensor in (q, k, v, out)):
        raise ValueError("a token's heads don't lie side by side")


def _constants(q: Tensor, blocks: Blocks, tile: Tile) -> dict[str, int | None]:
    return {
        "group": blocks.group,
        "size": q.shape[2],
        "lines": tile.lines,
        "keys": tile.keys,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "maxnreg": tile.registers,
    }


# Strides are constants, so that the distance between two lines of a block is part of an instruction instead of taking
# registers; a model has two of them. What changes with every micro-step isn't specialised: a number of tokens that
# happens to be a multiple of 16 would be compiled for.


@triton.jit(do_not_specialize=["table", "tokens"])
def _forward(
    q, k, v, out, lse, table, tokens, scale,
    q_stride: tl.constexpr, k_stride: tl.constexpr, v_stride: tl.constexpr, out_stride: tl.constexpr,
    group: tl.constexpr, size: tl.constexpr, lines: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    key_head = tl.program_id(0)
    first, row, length = _block(table)
    inside, position = _lines(first, length, group, lines)
    q_block = tl.load(_line_places(q, first, row, q_stride, group, size, lines), mask=inside[:, None], other=0.0)
    k_row, v_row = k + row * k_stride + key_head * size, v + row * v_stride + key_head * size
    total = tl.zeros([lines, size], tl.float32)
    top = tl.full([lines], float("-inf"), tl.float32)
    weight = tl.zeros([lines], tl.float32)
    whole, end = _key_range(first, length, group, lines, keys)
    total, top, weight = _attend(
        q_block, k_row, v_row, total, top, weight, scale, position, 0, whole, length, k_stride, v_stride,
        size, keys, False,
    )  # fmt: skip
    total, top, weight = _attend(
        q_block, k_row, v_row, total, top, weight, scale, position, whole, end, length, k_stride, v_stride,
        size, keys, True,
    )  # fmt: skip
    out_at = _line_places(out, first, row, out_stride, group, size, lines)
    tl.store(out_at, (total / weight[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(_sum_places(lse, first, row, tokens, group, lines), top + tl.log2(weight), mask=inside)


@triton.jit
def _attend(
    q_block, k_row, v_row, total, top, weight, scale, position, start, end, length,
    k_stride: tl.constexpr, v_stride: tl.constexpr, size: tl.constexpr, keys: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Softmax online over keys from `start` to `end`."""
    for at in range(start, end, keys):
        k_block = _key_rows(k_row, at, length, k_stride, size, keys, masked)
        scores = tl.dot(q_block, tl.trans(k_block), input_precision="ieee")
        if masked:
            scores = tl.where(_visible(at, position, keys), scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(top - higher)
        weight = weight * shrink + tl.sum(p, 1)
        v_block = _key_rows(v_row, at, length, v_stride, size, keys, masked)
        total = tl.dot(p.to(v_block.dtype), v_block, total * shrink[:, None], input_precision="ieee")
        top = higher
    return total, top, weight


@triton.jit(do_not_specialize=["table", "tokens"])
def _query_gradient(
    dout, q, k, v, out, lse, delta, dq, table, tokens, scale, dout_stride: tl.constexpr, q_stride: tl.constexpr,
    k_stride: tl.constexpr, v_stride: tl.constexpr, out_stride: tl.constexpr, dq_stride: tl.constexpr,
    group: tl.constexpr, size: tl.constexpr, lines: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    key_head = tl.program_id(0)
    first, row, length = _block(table)
    inside, position = _lines(first, length, group, lines)
    q_block = tl.load(_line_places(q, first, row, q_stride, group, size, lines), mask=inside[:, None], other=0.0)
    dout_at = _line_places(dout, first, row, dout_stride, group, size, lines)
    dout_block = tl.load(dout_at, mask=inside[:, None], other=0.0)
    out_at = _line_places(out, first, row, out_stride, group, size, lines)
    out_block = tl.load(out_at, mask=inside[:, None], other=0.0)
    deltas = tl.sum(dout_block.to(tl.float32) * out_block.to(tl.float32), 1)
    tl.store(_sum_places(delta, first, row, tokens, group, lines), deltas, mask=inside)
    lses = tl.load(_sum_places(lse, first, row, tokens, group, lines), mask=inside, other=0.0)
    k_row, v_row = k + row * k_stride + key_head * size, v + row * v_stride + key_head * size
    total = tl.zeros([lines, size], tl.float32)
    whole, end = _key_range(first, length, group, lines, keys)
    total = _add_query_gradient(
        q_block, dout_block, k_row, v_row, total, lses, deltas, scale, position, 0, whole, length, k_stride, v_stride,
        size, keys, False,
    )  # fmt: skip
    total = _add_query_gradient(
        q_block, dout_block, k_row, v_row, total, lses, deltas, scale, position, whole, end, length, k_stride, v_stride,
        size, keys, True,
    )  # fmt: skip
    dq_at = _line_places(dq, first, row, dq_stride, group, size, lines)
    tl.store(dq_at, (total * scale).to(dq.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _add_query_gradient(
    q_block, dout_block, k_row, v_row, total, lses, deltas, scale, position, start, end, length,
    k_stride: tl.constexpr, v_stride: tl.constexpr, size: tl.constexpr, keys: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Adds what comes by the keys from `start` to `end`, but for the scale."""
    for at in range(start, end, keys):
        k_block = _key_rows(k_row, at, length, k_stride, size, keys, masked)
        scores = tl.dot(q_block, tl.trans(k_block), input_precision="ieee")
        p = tl.exp2(scores * (scale * 1.4426950408889634) - lses[:, None])
        if masked:
            p = tl.where(_visible(at, position, keys), p, 0.0)
        v_block = _key_rows(v_row, at, length, v_stride, size, keys, masked)
        dp = tl.dot(dout_block, tl.trans(v_block), input_precision="ieee")
        ds = p * (dp - deltas[:, None])
        total = tl.dot(ds.to(k_block.dtype), k_block, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["table", "tokens"])
def _key_gradients(
    dout, q, k, v, lse, delta, dk, dv, table, tokens, scale,
    dout_stride: tl.constexpr, q_stride: tl.constexpr, k_stride: tl.constexpr, v_stride: tl.constexpr,
    group: tl.constexpr, size: tl.constexpr, lines: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    key_head = tl.program_id(0)
    first, row, length = _block(table)
    key = first + tl.arange(0, keys)
    k_at = _key_places(row + first, k_stride, size, keys)
    v_at = _key_places(row + first, v_stride, size, keys)
    k, v, dk, dv = k + key_head * size, v + key_head * size, dk + key_head * size, dv + key_head * size
    inside = (key < length)[:, None]
    k_block = tl.load(k + k_at, mask=inside, other=0.0)
    v_block = tl.load(v + v_at, mask=inside, other=0.0)
    k_total = tl.zeros([keys, size], tl.float32)
    v_total = tl.zeros([keys, size], tl.float32)
    # Whole blocks of lines end with the row; what can't be cut into them comes before, with those at the diagonal.
    start, end = first * group, length * group
    diagonal = tl.minimum(start + keys * group, end)
    whole = diagonal + (end - diagonal) % lines
    k_total, v_total = _add_key_gradients(
        dout, q, k_block, v_block, lse, delta, k_total, v_total, scale, key, start, whole, row, tokens,
        dout_stride, q_stride, group, size, lines, True,
    )  # fmt: skip
    k_total, v_total = _add_key_gradients(
        dout, q, k_block, v_block, lse, delta, k_total, v_total, scale, key, whole, end, row, tokens,
        dout_stride, q_stride, group, size, lines, False,
    )  # fmt: skip
    tl.store(dk + k_at, (k_total * scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + v_at, v_total.to(dv.dtype.element_ty), mask=inside)


@triton.jit
def _add_key_gradients(
    dout, q, k_block, v_block, lse, delta, k_total, v_total, scale, key, start, end, row, tokens,
    dout_stride: tl.constexpr, q_stride: tl.constexpr,
    group: tl.constexpr, size: tl.constexpr, lines: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Adds what comes by the lines from `start` to `end`; the keys' gradient but for the scale."""
    for at in range(start, end, lines):
        inside = at + tl.arange(0, lines) < end
        q_at = _line_places(q, at, row, q_stride, group, size, lines)
        dout_at = _line_places(dout, at, row, dout_stride, group, size, lines)
        lse_at = _sum_places(lse, at, row, tokens, group, lines)
        delta_at = _sum_places(delta, at, row, tokens, group, lines)
        if masked:
            q_block = tl.load(q_at, mask=inside[:, None], other=0.0)
            lses = tl.load(lse_at, mask=inside, other=0.0)
        else:
            q_block = tl.load(q_at)
            lses = tl.load(lse_at)
        # Keys come first, so that p and ds can be a product's first factor without leaving their registers.
        scores = tl.dot(k_block, tl.trans(q_block), input_precision="ieee")
        p = tl.exp2(scores * (scale * 1.4426950408889634) - lses[None, :])
        if masked:
            position = (at + tl.arange(0, lines)) // group
            p = tl.where(key[:, None] <= position[None, :], p, 0.0)
            dout_block = tl.load(dout_at, mask=inside[:, None], other=0.0)
            deltas = tl.load(delta_at, mask=inside, other=0.0)
        else:
            dout_block = tl.load(dout_at)
            deltas = tl.load(delta_at)
        v_total = tl.dot(p.to(dout_block.dtype), dout_block, v_total, input_precision="ieee")
        dp = tl.dot(v_block, tl.trans(dout_block), input_precision="ieee")
        ds = p * (dp - deltas[None, :])
        k_total = tl.dot(ds.to(q_block.dtype), q_block, k_total, input_precision="ieee")
    return k_total, v_total


@triton.jit
def _block(table):
    """The block's first line or key in its row, the row's first token (int64) and its length."""
    at = table + tl.program_id(1) * 3
    return tl.load(at), tl.load(at + 1).to(tl.int64), tl.load(at + 2)


@triton.jit
def _lines(first, length, group: tl.constexpr, lines: tl.constexpr):
    """Of each line, whether its row still has it, and its token's position in the row."""
    line = first + tl.arange(0, lines)
    return line < length * group, line // group


@triton.jit
def _line_places(
    base, first, row, stride: tl.constexpr, group: tl.constexpr, size: tl.constexpr, lines: tl.constexpr
):  # fmt: skip
    """Pointers [lines, size] to a block of lines."""
    start = base + (row + first // group) * stride + tl.program_id(0) * (group * size)
    line = tl.arange(0, lines)
    if lines % group != 0:
        line += first % group
    return start + (line // group * stride + line % group * size)[:, None] + tl.arange(0, size)[None, :]


@triton.jit
def _sum_places(base, first, row, tokens, group: tl.constexpr, lines: tl.constexpr):
    """Pointers [lines] to what there is one number of for every line: those of a key head lie end to end."""
    return base + (tl.program_id(0).to(tl.int64) * tokens + row) * group + first + tl.arange(0, lines)


@triton.jit
def _key_range(first, length, group: tl.constexpr, lines: tl.constexpr, keys: tl.constexpr):
    """How many keys, in whole blocks, all lines of a block see; and how many its last one sees."""
    end = tl.minimum((first + lines - 1) // group + 1, length)
    return (first // group + 1) // keys * keys, end


@triton.jit
def _key_rows(
    base, first, length, stride: tl.constexpr, size: tl.constexpr, keys: tl.constexpr, masked: tl.constexpr
):  # fmt: skip
    """A block [keys, size] of one row's keys or values."""
    at = base + _key_places(tl.cast(first, tl.int64), stride, size, keys)
    if masked:
        # Another row's infinities would come through a product with zero.
        return tl.load(at, mask=(first + tl.arange(0, keys) < length)[:, None], other=0.0)
    return tl.load(at)


@triton.jit
def _key_places(first, stride: tl.constexpr, size: tl.constexpr, keys: tl.constexpr):
    """Where a block [keys, size] lies from a first token, int64."""
    return first * stride + tl.arange(0, keys)[:, None] * stride + tl.arange(0, size)[None, :]


@triton.jit
def _visible(first, position, keys: tl.constexpr):
    """Which of a block's keys each line sees."""
    return first + tl.arange(0, keys)[None, :] <= position[:, None]
