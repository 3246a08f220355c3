"""Low-rank parts of several adapters as Triton kernels, with dropout inside the products.

A library's products need inputs after dropout in memory for every module, and one launch per adapter, module and
matrix. Here dropout is applied between the load of a value and its product. One launch serves all adapters and modules
of a group. Sums are in float32 and in a fixed order, so a launch gives the same bits each time. A program reads one
adapter's tokens and weights only, so values that aren't finite in one adapter never reach another. The time goes into
hashing, not into memory traffic: some eight integer operations a value and module.

Imported on a GPU only, or in tests for Triton's interpreter.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import triton
import triton.language as tl
from torch import Tensor

from trials.engine.kernels.sending import to_device_async
from trials.engine.lora.adapter import Adapter
from trials.model.dropout import feature_keys

_WIDEST = 64
_NARROWEST = 16
_MODULES = 3
_FIELDS = tl.constexpr(10)
_STEPS_OF_A_SPLIT = 8
_UNIT = 8
"""Largest `GroupTable.unit`: no more values are read at once, and every unit compiles a kernel of its own."""
_FLOAT = tl.constexpr(4)
"""Bytes of a float32."""


@dataclass(frozen=True)
class Noise:
    """Hash inputs that decide which values are dropped; hashing for each use is faster than reading factors."""

    token_keys: Tensor
    feature_keys: Tensor
    """Result of `stacked_keys` for the group."""
    thresholds: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Tiling:
    """Block sizes and launch options of one kernel."""

    tokens: int
    features: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Settings:
    """Tilings of the three kernels."""

    inner: Tiling
    input_gradient: Tiling
    weight_gradients: Tiling
    programs: int
    """Target number of programs; `dropped_inner` splits its sums over features to come near it."""


# Fastest of half a dozen tilings for each kernel on an H100, whose 132 multiprocessors run four programs each.
LOW_RANKS = Settings(Tiling(64, 64, 4, 4), Tiling(32, 128, 4, 1), Tiling(64, 64, 4, 3), programs=528)
HIGH_RANKS = Settings(Tiling(64, 64, 4, 4), Tiling(64, 64, 4, 1), Tiling(64, 64, 4, 3), programs=528)
_LOW = 32


@dataclass(frozen=True)
class Place:
    """Position of one adapter's low-rank part of one module in a micro-batch."""

    adapter: Adapter
    module: str
    """Name of the module in the base model, with {} for the layer's number."""
    part: int
    """Index of the module in its group."""
    start: int
    """First of the adapter's tokens; `end` is exclusive."""
    end: int
    column: int
    """First column of the adapter's ranks among those of the group."""
    scale: float
    """Scale of the results of `dropped_inner`: the adapter's own, unless the caller applies that elsewhere."""


@dataclass(frozen=True)
class GroupTable:
    """Table from which the kernels read the layout of a group in one micro-batch, for all layers."""

    pieces: Tensor
    """[pieces, fields], int64 like the tiles: a piece is at most 64 ranks of one adapter and module."""
    inner_tiles: Tensor
    """[tiles, 3]: first piece, the piece after the last, first token."""
    input_gradient_tiles: Tensor
    """[tiles, 3], with the same columns."""
    padded: int
    """Ranks of a piece in a product, padded to a power of two."""
    unit: int
    """Power of two that divides all columns, ranks and gradient offsets, so that as many values are read at once."""
    settings: Settings


def group_table(
    places: Sequence[Place], layers: int, device: torch.device, settings: Settings | None = None
) -> GroupTable:
    """Return the table of a group, which is made on the CPU and copied to `device` asynchronously.

    Places with the same tokens must be of one adapter. `settings` None: those for the adapters' ranks.

    Raises:
        ValueError: If an adapter's gradients aren't float32, or not at equal distances from layer to layer.
    """
    widest = min(_WIDEST, max((place.adapter.rank for place in places), default=1))
    padded = max(_NARROWEST, triton.next_power_of_2(widest))
    settings = settings or (LOW_RANKS if padded <= _LOW else HIGH_RANKS)
    pieces: list[tuple[int, ...]] = []
    inner, input_gradient = [], []
    taken = sorted((place for place in places if place.start < place.end), key=lambda place: (place.start, place.part))
    for (start, end), own in groupby(taken, key=lambda place: (place.start, place.end)):
        first = len(pieces)
        pieces += [piece for place in own for piece in _pieces(place, layers)]
        numbers = range(first, len(pieces))
        # Modules are neighbours, because they read the same tokens.
        tokens = range(start, end, settings.inner.tokens)
        inner += [(number, number + 1, token) for token in tokens for number in numbers]
        input_gradient += [(first, len(pieces), token) for token in range(start, end, settings.input_gradient.tokens)]
    there, inner_tiles, input_gradient_tiles = _there([pieces, inner, input_gradient], device)
    return GroupTable(there, inner_tiles, input_gradient_tiles, padded, _unit(pieces), settings)


def stacked_keys(modules: Sequence[str], features: int, device: torch.device) -> Tensor:
    """Return the bits of the modules' `trials.model.dropout.feature_keys` [modules, features] in int32."""
    return torch.stack([feature_keys(module, features, device) for module in modules]).to(torch.int32)


def dropped_inner(x: Tensor, a: Tensor, noise: Noise | None, table: GroupTable, inner: Tensor) -> None:
    """Write scale * (dropout of `x` [tokens, in]) @ A^T to each adapter's tokens and ranks of `inner` [tokens, ranks].

    `a` [ranks, in] has the group's matrices of one layer. `noise` has the group's `stacked_keys`; None: nothing is
    dropped. The rest of `inner` stays as it is. All are of one type, with contiguous rows.
    """
    tiles, cut, width = len(table.inner_tiles), table.settings.inner, x.shape[1]
    if not tiles:
        return
    steps = triton.cdiv(width, cut.features)
    splits = max(1, min(table.settings.programs // tiles, steps // _STEPS_OF_A_SPLIT))
    share = triton.cdiv(steps, splits) * cut.features
    whole = splits == 1
    sums = inner
    if not whole:
        sums = torch.empty(splits, tiles, cut.tokens, table.padded, dtype=torch.float32, device=x.device)
    _dropped_inner[(tiles, splits)](
        x, a, sums, table.inner_tiles, table.pieces, *_keys(noise, x), x.stride(0), a.stride(0), inner.stride(0),
        width, share, noise is not None, whole, cut.tokens, cut.features, table.padded, table.unit,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    if not whole:
        _sum_splits[(tiles,)](
            sums, inner, table.inner_tiles, table.pieces, inner.stride(0), tiles, splits, cut.tokens, table.padded,
            table.unit,
        )  # fmt: skip


def add_dropped_input_gradient(
    dx: Tensor, dinner: Tensor, a: Tensor, noise: Noise | None, table: GroupTable, factor: float = 1.0
) -> None:
    """Add `factor` times the sum of all modules' dropout of `dinner` [tokens, ranks] @ A to `dx` [tokens, in].

    `dinner` is the gradient of the inner products; only each adapter's own tokens and ranks of it are read. The other
    arguments are those of `dropped_inner`. The sum is rounded once.
    """
    tiles, cut, width = len(table.input_gradient_tiles), table.settings.input_gradient, dx.shape[1]
    if not tiles:
        return
    unit = math.gcd(table.unit, dinner.stride(0))
    _add_dropped_input_gradient[(tiles, triton.cdiv(width, cut.features))](
        dx, dinner, a, table.input_gradient_tiles, table.pieces, *_keys(noise, dx), dx.stride(0),
        dinner.stride(0) // unit, a.stride(0), width, factor, noise is not None, cut.tokens, cut.features, table.padded,
        unit,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip


def add_weight_gradients(
    x: Tensor,
    inner: Tensor,
    gradients: Sequence[Tensor],
    dinner: Tensor,
    noise: Noise | None,
    table: GroupTable,
    layer: int,
    factor: float = 1.0,
) -> None:
    """Add `factor` times the gradients of the layer's A and B to those of the table's adapters.

    `gradients` [tokens, out] are those of each module's output, at most three. The gradient of A is dinner^T @ (dropout
    of x). That of B is gradient^T @ inner. Both are over an adapter's own tokens. The other arguments are those of
    `dropped_inner` and `add_dropped_input_gradient`.
    """
    if not len(table.pieces):
        return
    cut = table.settings.weight_gradients
    dy = [*gradients, *[gradients[0]] * (_MODULES - len(gradients))]
    unit = math.gcd(table.unit, inner.stride(0), dinner.stride(0))
    widths = [x.shape[1], *(each.shape[1] for each in dy)]
    _add_weight_gradients[(triton.cdiv(max(widths), cut.features), 2 * len(table.pieces))](
        x, inner, *dy, dinner, table.pieces, *_keys(noise, x), x.stride(0), *(each.stride(0) for each in dy),
        inner.stride(0) // unit, dinner.stride(0) // unit, *widths, layer, factor, noise is not None,
        cut.tokens, cut.features, table.padded, unit, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip


def _keys(noise: Noise | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the tensors of `noise`; without dropout any tensor in their place, because none is read."""
    if noise is None:
        return x, x, x, x
    return noise.token_keys, noise.feature_keys, noise.thresholds, noise.scales


def _pieces(place: Place, layers: int) -> Iterator[tuple[int, ...]]:
    rank, scale = place.adapter.rank, struct.unpack("i", struct.pack("f", place.scale))[0]
    a, b, stride = _addresses(place, layers)
    first = place.adapter.gradients[place.module.format(0)].a
    for start in range(0, rank, _WIDEST):
        a_at, b_at = a + start * first.stride(0) * first.itemsize, b + start * first.itemsize
        ranks = min(_WIDEST, rank - start)
        yield place.start, place.end, place.column + start, ranks, place.part, scale, a_at, b_at, stride, rank


def _addresses(place: Place, layers: int) -> tuple[int, int, int]:
    """Return the addresses of the first layer's gradients of A and B, and the bytes from one layer to the next."""
    gradients = place.adapter.gradients
    at = [
        (pair.a.data_ptr(), pair.b.data_ptr())
        for pair in (gradients[place.module.format(layer)] for layer in (0, min(1, layers - 1), layers - 1))
    ]
    (a, b), (second, _), last = at
    stride = second - a
    if last != (a + stride * (layers - 1), b + stride * (layers - 1)):
        raise ValueError(f"the gradients of {place.module} don't lie in the same distance from layer to layer")
    if place.adapter.gradient.dtype != torch.float32:
        raise ValueError(f"gradients in {place.adapter.gradient.dtype}, not float32")
    return a, b, stride


def _unit(pieces: Sequence[tuple[int, ...]]) -> int:
    unit = _UNIT
    for _, _, column, ranks, _, _, a, b, stride, rank in pieces:
        unit = math.gcd(unit, column, ranks, rank, *(number // 4 for number in (a, b, stride)))
    return unit


def _there(tables: Sequence[Sequence[tuple[int, ...]]], device: torch.device) -> list[Tensor]:
    """Return the tables as int64 tensors on the device, sent in one copy."""
    numbers = [number for table in tables for row in table for number in row]
    together = to_device_async(torch.tensor(numbers, dtype=torch.int64), device)
    parts = torch.split(together, [sum(map(len, table)) for table in tables])
    return [part.view(len(table), -1) if table else part for part, table in zip(parts, tables, strict=True)]


# Arguments that differ from one micro-batch to the next aren't specialised: combinations of adapters keep changing, and
# every compilation takes a second.
_WITHOUT_ALIGNMENT = ["tiles", "pieces", "token_keys", "thresholds", "scales"]
_STRIDES = ["inner_stride", "dinner_stride"]


@triton.jit
def _tile(tiles, at):
    """Return the first piece of a tile, the piece after its last, and its first token."""
    row = tiles + at * 3
    return tl.load(row).to(tl.int32), tl.load(row + 1).to(tl.int32), tl.load(row + 2).to(tl.int32)


@triton.jit
def _piece(pieces, number, unit: tl.constexpr):
    """Return the end of a piece's tokens, its first column, its number of ranks, and its module's index."""
    row = pieces + number * _FIELDS
    column = tl.multiple_of(tl.load(row + 2).to(tl.int32), unit)
    ranks = tl.multiple_of(tl.load(row + 3).to(tl.int32), unit)
    return tl.load(row + 1).to(tl.int32), column, ranks, tl.load(row + 4).to(tl.int32)


@triton.jit
def _scale(pieces, number):
    return tl.load(pieces + number * _FIELDS + 5).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _token_noise(token_keys, thresholds, scales, token, here):
    """Load the keys, thresholds and scales of tokens."""
    key = tl.load(token_keys + token, mask=here, other=0).to(tl.uint32)
    threshold = tl.load(thresholds + token, mask=here, other=0).to(tl.uint32)
    return key, threshold, tl.load(scales + token, mask=here, other=0.0)


@triton.jit
def _kept(token_key, threshold, feature_key):
    """Return the mask [tokens, features] of values that aren't dropped, as in `trials.model.dropout`."""
    # Shifts distribute over exclusive or, so the hash's first step is applied to each key before they are combined.
    token_key ^= token_key >> 16
    feature_key ^= feature_key >> 16
    hashed = token_key[:, None] ^ feature_key[None, :]
    hashed *= 0x85EBCA6B
    hashed ^= hashed >> 13
    hashed *= 0xC2B2AE35
    hashed ^= hashed >> 16
    return hashed >= threshold[:, None]


@triton.jit
def _dropped(values, kept, scale):
    """Return the values after dropout, rounded before the product like `torch_ops.drop`."""
    return tl.where(kept, values.to(tl.float32) * scale[:, None], 0.0).to(values.dtype)


@triton.jit(do_not_specialize=_STRIDES, do_not_specialize_on_alignment=_WITHOUT_ALIGNMENT)
def _dropped_inner(
    x, a, sums, tiles, pieces, token_keys, feature_keys, thresholds, scales, x_stride, a_stride, inner_stride,
    width, share, drops: tl.constexpr, whole: tl.constexpr, tokens: tl.constexpr, features: tl.constexpr,
    padded: tl.constexpr, unit: tl.constexpr,
):  # fmt: skip
    number, _, start = _tile(tiles, tl.program_id(0))
    end, column, ranks, part = _piece(pieces, number, unit)
    lanes, rank = tl.arange(0, tokens), tl.arange(0, padded)
    here, present = start + lanes < end, rank < ranks
    x_at = x + start.to(tl.int64) * x_stride + lanes[:, None] * x_stride
    a_at = a + column.to(tl.int64) * a_stride + rank[None, :] * a_stride
    if drops:
        key, threshold, scale = _token_noise(token_keys, thresholds, scales, start + lanes, here)
    total = tl.zeros((tokens, padded), tl.float32)
    for first in range(tl.program_id(1) * share, tl.minimum((tl.program_id(1) + 1) * share, width), features):
        feature = first + tl.arange(0, features)
        inside = feature < width
        values = tl.load(x_at + feature[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        if drops:
            feature_key = tl.load(feature_keys + part * width + feature, mask=inside, other=0).to(tl.uint32)
            values = _dropped(values, _kept(key, threshold, feature_key), scale)
        weights = tl.load(a_at + feature[:, None], mask=present[None, :] & inside[:, None], other=0.0)
        total = tl.dot(values, weights, total, input_precision="ieee")
    if whole:
        at = sums + start.to(tl.int64) * inner_stride + lanes[:, None] * inner_stride + (column + rank)[None, :]
        tl.store(at, total * _scale(pieces, number), mask=here[:, None] & present[None, :])
    else:
        place = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * tokens
        tl.store(sums + (place + lanes)[:, None] * padded + rank[None, :], total)


@triton.jit(do_not_specialize=["tile_count", "splits", *_STRIDES], do_not_specialize_on_alignment=_WITHOUT_ALIGNMENT)
def _sum_splits(
    sums, inner, tiles, pieces, inner_stride, tile_count, splits, tokens: tl.constexpr, padded: tl.constexpr,
    unit: tl.constexpr,
):  # fmt: skip
    number, _, start = _tile(tiles, tl.program_id(0))
    end, column, ranks, _ = _piece(pieces, number, unit)
    lanes, rank = tl.arange(0, tokens), tl.arange(0, padded)
    total = tl.zeros((tokens, padded), tl.float32)
    for split in range(splits):
        place = (split * tile_count + tl.program_id(0)).to(tl.int64) * tokens
        total += tl.load(sums + (place + lanes)[:, None] * padded + rank[None, :])
    at = inner + start.to(tl.int64) * inner_stride + lanes[:, None] * inner_stride + (column + rank)[None, :]
    mask = (start + lanes < end)[:, None] & (rank < ranks)[None, :]
    tl.store(at, total * _scale(pieces, number), mask=mask)


@triton.jit(do_not_specialize=_STRIDES, do_not_specialize_on_alignment=_WITHOUT_ALIGNMENT)
def _add_dropped_input_gradient(
    dx, dinner, a, tiles, pieces, token_keys, feature_keys, thresholds, scales, dx_stride, dinner_stride, a_stride,
    width, factor, drops: tl.constexpr, tokens: tl.constexpr, features: tl.constexpr, padded: tl.constexpr,
    unit: tl.constexpr,
):  # fmt: skip
    number, last, start = _tile(tiles, tl.program_id(0))
    end, _, _, _ = _piece(pieces, number, unit)
    lanes, rank = tl.arange(0, tokens), tl.arange(0, padded)
    feature = tl.program_id(1) * features + tl.arange(0, features)
    here, inside = start + lanes < end, feature < width
    if drops:
        key, threshold, scale = _token_noise(token_keys, thresholds, scales, start + lanes, here)
    dinner_stride *= unit
    dinner_at = dinner + start.to(tl.int64) * dinner_stride + lanes[:, None] * dinner_stride + rank[None, :]
    a_at = a + rank[:, None] * a_stride + feature[None, :]
    total = tl.zeros((tokens, features), tl.float32)
    for each in range(number, last):
        _, column, ranks, part = _piece(pieces, each, unit)
        present = rank < ranks
        left = tl.load(dinner_at + column, mask=here[:, None] & present[None, :], other=0.0)
        weights = tl.load(a_at + column.to(tl.int64) * a_stride, mask=present[:, None] & inside[None, :], other=0.0)
        product = tl.dot(left, weights, input_precision="ieee")
        if drops:
            feature_key = tl.load(feature_keys + part * width + feature, mask=inside, other=0).to(tl.uint32)
            product = tl.where(_kept(key, threshold, feature_key), product, 0.0)
        total += product
    if drops:
        total *= scale[:, None]
    at = dx + start.to(tl.int64) * dx_stride + lanes[:, None] * dx_stride + feature[None, :]
    mask = here[:, None] & inside[None, :]
    before = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, before + total * factor, mask=mask)


@triton.jit(do_not_specialize=["layer", *_STRIDES], do_not_specialize_on_alignment=_WITHOUT_ALIGNMENT)
def _add_weight_gradients(
    x, inner, dy0, dy1, dy2, dinner, pieces, token_keys, feature_keys, thresholds, scales, x_stride,
    dy0_stride, dy1_stride, dy2_stride, inner_stride, dinner_stride, width, out0, out1, out2, layer, factor,
    drops: tl.constexpr, tokens: tl.constexpr, features: tl.constexpr, padded: tl.constexpr, unit: tl.constexpr,
):  # fmt: skip
    inner_stride, dinner_stride = inner_stride * unit, dinner_stride * unit
    number = tl.program_id(1) // 2
    row = pieces + number * _FIELDS
    start = tl.load(row).to(tl.int32)
    end, column, ranks, part = _piece(pieces, number, unit)
    distance = layer.to(tl.int64) * tl.multiple_of(tl.load(row + 8), unit * _FLOAT)
    feature = tl.program_id(0) * features + tl.arange(0, features)
    rank = tl.arange(0, padded)
    if tl.program_id(1) % 2 == 0:
        if tl.program_id(0) * features < width:
            total = _products(
                x, dinner, token_keys, feature_keys + part * width, thresholds, scales, x_stride, dinner_stride,
                width, start, end, column, ranks, feature, drops, tokens, features, padded,
            )  # fmt: skip
            address = tl.multiple_of(tl.load(row + 6), unit * _FLOAT) + distance
            at = address.to(tl.pointer_type(tl.float32)) + rank[None, :] * width + feature[:, None]
            _add(at, total * factor, (feature < width)[:, None] & (rank < ranks)[None, :])
    else:
        dy, dy_stride, out = dy0, dy0_stride, out0
        if part == 1:
            dy, dy_stride, out = dy1, dy1_stride, out1
        if part == 2:
            dy, dy_stride, out = dy2, dy2_stride, out2
        if tl.program_id(0) * features < out:
            total = _products(
                dy, inner, token_keys, feature_keys, thresholds, scales, dy_stride, inner_stride,
                out, start, end, column, ranks, feature, False, tokens, features, padded,
            )  # fmt: skip
            address = tl.multiple_of(tl.load(row + 7), unit * _FLOAT) + distance
            pitch = tl.multiple_of(tl.load(row + 9).to(tl.int32), unit)
            at = address.to(tl.pointer_type(tl.float32)) + feature[:, None] * pitch + rank[None, :]
            _add(at, total * factor, (feature < out)[:, None] & (rank < ranks)[None, :])


@triton.jit
def _products(
    wide, narrow, token_keys, feature_keys, thresholds, scales, wide_stride, narrow_stride, width, start, end, column,
    ranks, feature, drops: tl.constexpr, tokens: tl.constexpr, features: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Return the products of features and ranks [features, padded], summed over the tokens of a segment."""
    lanes, rank = tl.arange(0, tokens), tl.arange(0, padded)
    inside, present = feature < width, rank < ranks
    if drops:
        feature_key = tl.load(feature_keys + feature, mask=inside, other=0).to(tl.uint32)
    total = tl.zeros((features, padded), tl.float32)
    for first in range(start, end, tokens):
        here = first + lanes < end
        token = tl.cast(first, tl.int64)
        wide_at = wide + token * wide_stride + lanes[:, None] * wide_stride + feature[None, :]
        values = tl.load(wide_at, mask=here[:, None] & inside[None, :], other=0.0)
        if drops:
            key, threshold, scale = _token_noise(token_keys, thresholds, scales, first + lanes, here)
            values = _dropped(values, _kept(key, threshold, feature_key), scale)
        narrow_at = narrow + token * narrow_stride + lanes[:, None] * narrow_stride
        factors = tl.load(narrow_at + (column + rank)[None, :], mask=here[:, None] & present[None, :], other=0.0)
        total = tl.dot(tl.trans(values), factors, total, input_precision="ieee")
    return total


@triton.jit
def _add(at, values, mask):
    tl.store(at, tl.load(at, mask=mask, other=0.0) + values, mask=mask)
