"""Adapters' matrices side by side, by groups of modules that read the same input, for the tokens of one micro-step.

The tokens lie in one segment per adapter. A group spans those from the first to the last adapter that has any of its
modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trials.engine.lora.adapter import Adapter, Stack


@dataclass(frozen=True)
class Segment:
    """The tokens of one adapter in a micro-step."""

    adapter: Adapter
    start: int
    end: int


@dataclass(frozen=True)
class Dropout:
    """What decides which inputs of the adapters are dropped, token by token; see `trials.model.dropout`."""

    token_keys: Tensor
    thresholds: Tensor
    scales: Tensor

    def narrowed(self, tokens: Tensor | slice) -> Dropout:
        """For a part of the tokens."""
        return Dropout(self.token_keys[tokens], self.thresholds[tokens], self.scales[tokens])


@dataclass(frozen=True)
class ModuleSlice:
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
class AdapterGroup:
    """Modules that read the same input."""

    parts: Sequence[ModuleSlice]
    span: slice
    """The tokens from the first to the last adapter that has any of the modules."""
    a: Tensor
    """[layers, ranks of all parts, in]"""
    mask: Tensor | None
    """[tokens of the span, ranks of all parts]: each token's scale at its own adapter's ranks, and 0 elsewhere, in
    float32 or wider; None where all are one adapter's."""
    scale: float
    """Beside the mask's."""

    @property
    def present(self) -> Sequence[ModuleSlice]:
        """The parts that any adapter has."""
        return [part for part in self.parts if part.segments]

    def within(self, segment: Segment) -> slice:
        """A segment's tokens among those of the span."""
        return _within(self.span, segment)

    def masked(self, inner: Tensor) -> Tensor:
        """`inner` [tokens of the span, ranks of all parts], or its gradient, times the mask in place."""
        return inner if self.mask is None else inner.mul_(self.mask)

    def narrowed(self, tokens: Tensor, now: Mapping[int, Segment]) -> AdapterGroup:
        """For a part of the tokens, given by their numbers; `now` has its segments by the former ones' `id`."""
        parts = [replace(part, segments=[now[id(segment)] for segment in part.segments]) for part in self.parts]
        span = _span(_distinct(parts))
        mask = None if self.mask is None else self.mask[tokens[span] - self.span.start]
        return replace(self, parts=parts, span=span, mask=mask)


def group_of(names: Sequence[str], stacks: Sequence[tuple[Segment, Mapping[str, Stack]]]) -> AdapterGroup | None:
    """Of the modules called `names`, such as q_proj; None where no adapter has any of them.

    `stacks` has the weights of every segment's adapter, in the type of the products.
    """
    parts, a, column = [], [], 0
    for name in names:
        present = [(segment, stack[name]) for segment, stack in stacks if name in stack]
        if not present:
            parts.append(ModuleSlice(name, (), slice(column, column), None))
            continue
        ranks = sum(segment.adapter.rank for segment, _ in present)
        a += [stack.a for _, stack in present]
        b = _beside([stack.b for _, stack in present], 2)
        columns = slice(column, column + ranks)
        parts.append(ModuleSlice(present[0][1].name, [segment for segment, _ in present], columns, b))
        column += ranks
    if not a:
        return None
    within = _distinct(parts)
    is_one = len(within) == 1
    mask = None if is_one else _mask(parts, _span(within), a[0])
    return AdapterGroup(parts, _span(within), _beside(a, 1), mask, within[0].adapter.scale if is_one else 1.0)


def _distinct(parts: Sequence[ModuleSlice]) -> Sequence[Segment]:
    """The segments that have any of the parts."""
    return list({id(segment): segment for part in parts for segment in part.segments}.values())


def _span(segments: Sequence[Segment]) -> slice:
    return slice(min(segment.start for segment in segments), max(segment.end for segment in segments))


def _within(span: slice, segment: Segment) -> slice:
    return slice(segment.start - span.start, segment.end - span.start)


def _mask(parts: Sequence[ModuleSlice], span: slice, like: Tensor) -> Tensor:
    # A scale such as 20 / 48, rounded to 8 bits, would be another one.
    dtype = torch.promote_types(like.dtype, torch.float32)
    mask = torch.zeros(span.stop - span.start, parts[-1].columns.stop, dtype=dtype, device=like.device)
    for part in parts:
        for segment, columns in part.columns_of_segments():
            mask[_within(span, segment), columns] = segment.adapter.scale
    return mask


def _beside(tensors: Sequence[Tensor], dimension: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dimension)
