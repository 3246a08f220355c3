"""The low-rank parts of several adapters at once.

The tokens of a micro-step lie in one segment per adapter. Their low-rank products are one matrix product over the
adapters' matrices side by side; a mask [tokens, ranks] then leaves each token the columns of its own adapter, scaled by
alpha / rank, and zero elsewhere. That is exact for any mixture of ranks, alphas and target modules. Modules that read
the same input (queries, keys and values) share that product. Gradients of weights are taken segment by segment, so
that what isn't finite in one adapter's tokens never reaches another's. Where only some of the adapters have a module,
nothing is computed for tokens before the first or after the last of these.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from trials.dropout import feature_keys
from trials.engine.adapter import Adapter, Stack


@dataclass(frozen=True)
class Segment:
    """The tokens of one adapter in a micro-step."""

    adapter: Adapter
    start: int
    end: int


@dataclass(frozen=True)
class Dropout:
    """What decides which inputs of the adapters are dropped, token by token; see `trials.dropout`."""

    token_keys: Tensor
    thresholds: Tensor
    scales: Tensor

    def narrowed(self, tokens: Tensor | slice) -> Dropout:
        """For a part of the tokens."""
        return Dropout(self.token_keys[tokens], self.thresholds[tokens], self.scales[tokens])


@dataclass(frozen=True)
class _Part:
    """One module of a group."""

    name: str
    """Of the module, with {} for the layer's number."""
    segments: Sequence[Segment]
    """Those whose adapters have it among their targets."""
    columns: slice
    """Its ranks among the group's."""
    b: Tensor | None
    """[layers, out, ranks]; None where no adapter has it."""

    def columns_of_segments(self) -> Iterator[tuple[Segment, slice]]:
        """Each segment with its ranks among the group's."""
        column = self.columns.start
        for segment in self.segments:
            yield segment, slice(column, column + segment.adapter.rank)
            column += segment.adapter.rank


@dataclass(frozen=True)
class _Group:
    """Modules that read the same input."""

    parts: Sequence[_Part]
    span: slice
    """The tokens from the first to the last adapter that has any of the modules."""
    a: Tensor
    """[layers, ranks of all parts, in]"""
    mask: Tensor | None
    """[tokens of the span, ranks of all parts]; None where they are one adapter's: then its scale does."""
    scale: float


class LowRank:
    """The adapters of one micro-step, applied module by module."""

    def __init__(
        self,
        segments: Sequence[Segment],
        dropout: Dropout | None,
        groups: Sequence[Sequence[str]],
        dtype: torch.dtype,
        ops: ModuleType,
    ) -> None:
        """`groups`: modules of a layer, such as q_proj, that read the same input.

        `dtype` is that of the low-rank products: in training that of all others, as under autocast; in evaluation the
        adapters' own, as PEFT computes them for whoever uses the adapter.
        """
        self._segments = segments
        self._dropout = dropout
        self._ops = ops
        self._noise: dict[tuple[str, int], Any] = {}
        stacks = [segment.adapter.stacked(dtype) for segment in segments]
        self._groups: dict[tuple[str, ...], _Group] = {}
        for names in groups:
            group = _group(names, list(zip(segments, stacks, strict=True)), dtype)
            if group is not None:
                self._groups[tuple(names)] = group

    def narrowed(self, tokens: Tensor, segments: Sequence[Segment]) -> LowRank:
        """The same for a part of the tokens, given by their numbers; `segments` are these tokens' own, in order."""
        part = copy.copy(self)
        now = {id(segment): after for segment, after in zip(self._segments, segments, strict=True)}
        part._segments, part._noise = segments, {}
        part._dropout = self._dropout and self._dropout.narrowed(tokens)
        part._groups = {names: _narrowed(group, tokens, now) for names, group in self._groups.items()}
        return part

    def add(self, names: Sequence[str], layer: int, x: Tensor, outputs: Sequence[Tensor]) -> Tensor | None:
        """Adds the low-rank parts of `x` [tokens, in] to each module's output [tokens, out] in place.

        Gives the inner products that the gradients need; None where no adapter has these modules.
        """
        group = self._groups.get(tuple(names))
        if group is None:
            return None
        inner = self._inner(group, layer, x[group.span])
        if group.mask is not None:
            inner *= group.mask
        for part, y in zip(group.parts, outputs, strict=True):
            if part.b is not None:
                self._add_product(inner[:, part.columns], part.b[layer].T, group.scale, y[group.span])
        return inner

    def _add_product(self, left: Tensor, right: Tensor, scale: float, y: Tensor) -> None:
        if left.dtype == y.dtype:
            y.addmm_(left, right, alpha=scale)
        else:
            y.copy_(torch.add(y, left @ right, alpha=scale))

    def add_input_gradient(
        self, names: Sequence[str], layer: int, gradients: Sequence[Tensor], dx: Tensor
    ) -> Tensor | None:
        """Adds the low-rank parts' gradient to `dx` [tokens, in] in place; `gradients` are those of each output.

        Gives the gradient of the inner products; None where no adapter has these modules.
        """
        group = self._groups.get(tuple(names))
        if group is None:
            return None
        pairs = zip(group.parts, gradients, strict=True)
        dinner = _cat([dy[group.span] @ part.b[layer] for part, dy in pairs if part.b is not None])
        if group.mask is not None:
            dinner *= group.mask
        self._add_input_gradient(group, layer, dinner, dx[group.span])
        return dinner

    def add_weight_gradients(
        self, names: Sequence[str], layer: int, x: Tensor, inner: Tensor, dinner: Tensor, gradients: Sequence[Tensor]
    ) -> None:
        """Adds those of the modules' weights to the adapters'.

        `x` and `inner` are those of `add`, `dinner` and `gradients` those of `add_input_gradient`.
        """
        group = self._groups[tuple(names)]
        for part, dy in zip(group.parts, (dy[group.span] for dy in gradients), strict=True):
            if not part.segments:
                continue
            read = self._dropped(group, part.name, layer, x[group.span])
            for segment, columns in part.columns_of_segments():
                tokens = slice(segment.start - group.span.start, segment.end - group.span.start)
                gradient = segment.adapter.gradients[part.name.format(layer)]
                _accumulate(gradient.a, dinner[tokens, columns].T, read[tokens], group.scale)
                _accumulate(gradient.b, dy[tokens].T, inner[tokens, columns], group.scale)

    def _inner(self, group: _Group, layer: int, x: Tensor) -> Tensor:
        x = x.to(group.a.dtype)
        if self._dropout is None:
            return x @ group.a[layer].T
        present = [part for part in group.parts if part.segments]
        return _cat([self._dropped(group, part.name, layer, x) @ group.a[layer, part.columns].T for part in present])

    def _add_input_gradient(self, group: _Group, layer: int, dinner: Tensor, dx: Tensor) -> None:
        if self._dropout is None:
            dx.addmm_(dinner, group.a[layer], alpha=group.scale)
            return
        for part in group.parts:
            if part.segments:
                gradient = dinner[:, part.columns] @ group.a[layer, part.columns]
                self._ops.add_dropped(dx, gradient, self._factors(group, part.name, layer, gradient), group.scale)

    def _dropped(self, group: _Group, name: str, layer: int, x: Tensor) -> Tensor:
        if self._dropout is None:
            return x
        dropped: Tensor = self._ops.drop(x, self._factors(group, name, layer, x))
        return dropped

    def _factors(self, group: _Group, name: str, layer: int, x: Tensor) -> Any:
        factors = self._noise.get((name, layer))
        if factors is None:
            assert self._dropout is not None
            drop, keys = self._dropout.narrowed(group.span), _feature_keys(name.format(layer), x.shape[1], x.device)
            factors = self._ops.noise(drop.token_keys, keys, drop.thresholds, drop.scales)
            self._noise[name, layer] = factors
        return factors


@functools.cache
def _feature_keys(module: str, features: int, device: torch.device) -> Tensor:
    """The same in every micro-step."""
    return feature_keys(module, features, device)


def _group(
    names: Sequence[str], stacks: Sequence[tuple[Segment, Mapping[str, Stack]]], dtype: torch.dtype
) -> _Group | None:
    parts, a, column = [], [], 0
    for name in names:
        present = [(segment, stack[name]) for segment, stack in stacks if name in stack]
        if not present:
            parts.append(_Part(name, (), slice(column, column), None))
            continue
        ranks = sum(segment.adapter.rank for segment, _ in present)
        a += [stack.a for _, stack in present]
        b = _beside([stack.b for _, stack in present], 2)
        columns = slice(column, column + ranks)
        parts.append(_Part(present[0][1].name, [segment for segment, _ in present], columns, b))
        column += ranks
    if not a:
        return None
    span, within = _span(parts)
    if len(within) == 1:
        return _Group(parts, span, _beside(a, 1), None, within[0].adapter.scale)
    return _Group(parts, span, _beside(a, 1), _mask(parts, span, column, dtype, a[0].device), 1.0)


def _span(parts: Sequence[_Part]) -> tuple[slice, Sequence[Segment]]:
    """From the first to the last of the parts' segments, and these."""
    within = list({id(segment): segment for part in parts for segment in part.segments}.values())
    return slice(min(segment.start for segment in within), max(segment.end for segment in within)), within


def _narrowed(group: _Group, tokens: Tensor, now: Mapping[int, Segment]) -> _Group:
    parts = [replace(part, segments=[now[id(segment)] for segment in part.segments]) for part in group.parts]
    span, _ = _span(parts)
    mask = None if group.mask is None else group.mask[tokens[span] - group.span.start]
    return replace(group, parts=parts, span=span, mask=mask)


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return _beside(tensors, 1)


def _beside(tensors: Sequence[Tensor], dimension: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dimension)


def _mask(parts: Sequence[_Part], span: slice, ranks: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Each token's scale at its own adapter's columns, and 0 elsewhere."""
    mask = torch.zeros(span.stop - span.start, ranks, dtype=dtype, device=device)
    for part in parts:
        for segment, columns in part.columns_of_segments():
            mask[segment.start - span.start : segment.end - span.start, columns] = segment.adapter.scale
    return mask


def _accumulate(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Total += scale * left @ right, in the type of `total`."""
    if total.is_cuda and total.dtype != left.dtype:
        torch.addmm(total, left, right, out_dtype=total.dtype, alpha=scale, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype), alpha=scale)
