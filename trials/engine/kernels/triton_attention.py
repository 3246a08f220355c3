"""Causal attention over rows of unequal length that are packed end to end, as Triton kernels, forward and backward.

The algorithm is FlashAttention-2 (arXiv 2307.08691): an online softmax in the forward pass, which the backward pass
recomputes from the log-sum-exp. One kernel computes the gradient of queries, one those of keys and values.

The kernels are made for short rows. A block of queries contains the heads that share a key head side by side. It spans
few tokens therefore, and little above the diagonal is computed. Tables list the blocks, those with most work first. No
sum uses atomics: the same input gives the same bits.

A *line* is a token with one of the query heads of a key head; lines are numbered token by token from the row's first.

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
"""Major compute capabilities of GPUs with 227 KiB of shared memory for a program."""


@dataclass(frozen=True)
class Tile:
    """Block sizes and launch options of one kernel. `lines` and `keys` are powers of 2, at least 16."""

    lines: int
    keys: int
    warps: int
    stages: int
    """Blocks of the inner loop in shared memory at once; from 3 on they are prefetched."""
    registers: int | None = None
    """Limit of registers a thread, so that more programs run at the same time; None: no limit."""


@dataclass(frozen=True)
class Settings:
    """Tiles of the three kernels: forward pass, gradient of queries, gradients of keys and values."""

    forward: Tile
    dq: Tile
    dkdv: Tile


LARGE = Settings(forward=Tile(128, 64, 8, 2, 128), dq=Tile(128, 32, 8, 3, 128), dkdv=Tile(32, 64, 4, 4))
"""Fastest of a dozen tiles for each kernel on an H100 (heads of 128, rows of 260 or 2,048 tokens)."""
SMALL = Settings(forward=Tile(64, 32, 4, 3), dq=Tile(64, 32, 4, 2), dkdv=Tile(32, 64, 8, 3))
"""Tiles for GPUs with less shared memory than an H100; they use at most 69 KiB on an RTX 4090."""
WIDE = Settings(forward=Tile(32, 32, 4, 1), dq=Tile(32, 32, 8, 1), dkdv=Tile(32, 32, 8, 1))
"""Tiles for heads of 256 or values in float32."""


def settings_for(size: int, dtype: torch.dtype, device: torch.device) -> Settings:
    """Return the tiles for heads of `size` and values of `dtype`."""
    if size > 128 or dtype == torch.float32:
        return WIDE
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in _LARGE:
        return SMALL
    return LARGE


@dataclass(frozen=True)
class Blocks:
    """Tables of the blocks that programs work on, most work first.

    A table is [blocks, 3], int32: a block's first line or key in its row, the row's first token, the row's length.
    """

    forward: Tensor
    """Blocks of lines."""
    dq: Tensor
    """Blocks of lines."""
    dkdv: Tensor
    """Blocks of keys."""
    group: int
    """Number of query heads that share a key head."""
    settings: Settings
    joined: Tensor
    """All tables, one after the other, of which the others are views."""

    def overwrite(self, other: Blocks) -> None:
        """Overwrite these tables with those of `other`, which must have as many blocks."""
        self.joined.copy_(other.joined)


def blocks_of(
    lengths: Sequence[int], group: int, settings: Settings, device: torch.device, most_rows: int | None = None
) -> Blocks:
    """Return the tables for rows of these lengths in tokens; `group` query heads share a key head.

    With `most_rows` the tables have as many blocks for any rows of as many tokens in all, if they are at most so many.
    Blocks beyond those of the rows are of length 0, and programs write nothing for them.
    """
    counts = torch.tensor(lengths, dtype=torch.int64)
    of_lines = {tile.lines: _line_blocks(counts, group, tile.lines) for tile in (settings.forward, settings.dq)}
    of_keys = _key_blocks(counts, settings.dkdv.keys)
    if most_rows is not None:
        tokens = sum(lengths)
        of_lines = {step: _extended(table, tokens * group // step + most_rows) for step, table in of_lines.items()}
        of_keys = _extended(of_keys, tokens // settings.dkdv.keys + most_rows)
    tables = [*of_lines.values(), of_keys]
    joined = to_device_async(torch.cat(tables).to(torch.int32), device)
    *there, keys = joined.split([len(table) for table in tables])
    lines = dict(zip(of_lines, there, strict=True))
    return Blocks(lines[settings.forward.lines], lines[settings.dq.lines], keys, group, settings, joined)


def _extended(table: Tensor, blocks: int) -> Tensor:
    """Return `table` with blocks of length 0 behind its own."""
    return torch.cat([table, table.new_zeros(blocks - len(table), table.shape[1])])


def _line_blocks(lengths: Tensor, group: int, step: int) -> Tensor:
    table = _table(lengths, lengths * group, step)
    # A later line attends to more keys, so its block has more work.
    return table[table[:, 0].argsort(descending=True, stable=True)]


def _key_blocks(lengths: Tensor, step: int) -> Tensor:
    table = _table(lengths, lengths, step)
    return table[(table[:, 2] - table[:, 0]).argsort(descending=True, stable=True)]


def _table(lengths: Tensor, units: Tensor, step: int) -> Tensor:
    """Return a table that cuts the `units` (lines or keys) of every row into blocks of `step`."""
    counts = (units + step - 1) // step
    row = torch.repeat_interleave(counts)
    first = (torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]) * step
    starts = lengths.cumsum(0) - lengths
    return torch.stack([first, starts[row], lengths[row]], 1)


def forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, blocks: Blocks) -> Tensor:
    """Compute attention of `q` to `k` and `v` into `out`; return what `backward` needs.

    `q` and `out` are [tokens, heads, size], `k` and `v` [tokens, key heads, size]. They may be views with any stride
    between tokens; the heads of one token must be contiguous. `size` is a power of 2 from 16 to 256.

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
    """Write the gradient of `q` to `dq`, and overwrite `k` and `v` with theirs; `dout` is the gradient of `out`.

    Shapes and layouts are those of `forward`, whose `out` and result `lse` are given. `dq` must not share memory with
    the other tensors.

    Raises:
        ValueError: If a shape or layout is another.
    """
    _check(q, k, v, out, blocks)
    _check(dout, k, v, dq, blocks)
    if lse.shape != (k.shape[1], len(q), blocks.group) or not lse.is_contiguous():
        raise ValueError("lse isn't what the forward pass gave")
    # The dot product of `dout` and `out` of every line; the first kernel computes it for the second.
    delta = torch.empty_like(lse)
    _query_gradient[(k.shape[1], len(blocks.dq))](
        dout, q, k, v, out, lse, delta, dq, blocks.dq, len(q), q.shape[2] ** -0.5, dout.stride(0), q.stride(0),
        k.stride(0), v.stride(0), out.stride(0), dq.stride(0), **_constants(q, blocks, blocks.settings.dq),
    )  # fmt: skip
    # From here on each block of keys and values is read by one program only, so its gradients may overwrite it.
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


# Strides are compile-time constants, so that distances between the lines of a block are part of an instruction instead
# of taking registers; a model has two of them. Arguments that change with every micro-batch aren't specialised:
# otherwise a number of tokens that happens to be a multiple of 16 would compile a kernel of its own.


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
    """Continue the online softmax over the keys from `start` to `end`."""
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
    """Add the gradient through the keys from `start` to `end`, without the scale."""
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
    # Whole blocks of lines are counted from the end of the row. The remainder comes before them, in the masked loop
    # with the lines at the diagonal.
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
    """Add the gradients through the lines from `start` to `end`; that of the keys without the scale."""
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
        # Keys are the rows, so that p and ds are first factors of the products without leaving their registers.
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
    """Return the block's first line or key in its row, the row's first token (int64) and the row's length."""
    at = table + tl.program_id(1) * 3
    return tl.load(at), tl.load(at + 1).to(tl.int64), tl.load(at + 2)


@triton.jit
def _lines(first, length, group: tl.constexpr, lines: tl.constexpr):
    """Return for each line of a block whether it is inside the row, and its token's position in the row."""
    line = first + tl.arange(0, lines)
    return line < length * group, line // group


@triton.jit
def _line_places(
    base, first, row, stride: tl.constexpr, group: tl.constexpr, size: tl.constexpr, lines: tl.constexpr
):  # fmt: skip
    """Return pointers [lines, size] to a block of lines."""
    start = base + (row + first // group) * stride + tl.program_id(0) * (group * size)
    line = tl.arange(0, lines)
    if lines % group != 0:
        line += first % group
    return start + (line // group * stride + line % group * size)[:, None] + tl.arange(0, size)[None, :]


@triton.jit
def _sum_places(base, first, row, tokens, group: tl.constexpr, lines: tl.constexpr):
    """Return pointers [lines] into a tensor with one number for every line, such as `lse`."""
    return base + (tl.program_id(0).to(tl.int64) * tokens + row) * group + first + tl.arange(0, lines)


@triton.jit
def _key_range(first, length, group: tl.constexpr, lines: tl.constexpr, keys: tl.constexpr):
    """Return the number of keys in whole blocks that all lines see, and the number that the last line sees."""
    end = tl.minimum((first + lines - 1) // group + 1, length)
    return (first // group + 1) // keys * keys, end


@triton.jit
def _key_rows(
    base, first, length, stride: tl.constexpr, size: tl.constexpr, keys: tl.constexpr, masked: tl.constexpr
):  # fmt: skip
    """Load a block [keys, size] of one row's keys or values."""
    at = base + _key_places(tl.cast(first, tl.int64), stride, size, keys)
    if masked:
        # Zeros instead of the next row's tokens: an infinity there would make a product with zero NaN.
        return tl.load(at, mask=(first + tl.arange(0, keys) < length)[:, None], other=0.0)
    return tl.load(at)


@triton.jit
def _key_places(first, stride: tl.constexpr, size: tl.constexpr, keys: tl.constexpr):
    """Return the offsets [keys, size] of a block of keys from token `first` on, int64."""
    return first * stride + tl.arange(0, keys)[:, None] * stride + tl.arange(0, size)[None, :]


@triton.jit
def _visible(first, position, keys: tl.constexpr):
    """Return the mask [lines, keys] of the keys that each line sees."""
    return first + tl.arange(0, keys)[None, :] <= position[:, None]
