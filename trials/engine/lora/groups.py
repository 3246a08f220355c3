"""Matrices of several adapters side by side, by groups of modules with the same input, for one micro-batch.

The tokens lie in one segment per adapter. A group spans the tokens from the first to the last adapter that has any of
its modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trials.engine.lora.adapter import Adapter, Stack


@dataclass(frozen=True)
class Segment:
    """Range of one adapter's tokens in a micro-batch; `end` is exclusive."""

    adapter: Adapter
    start: int
    end: int


@dataclass(frozen=True)
class Dropout:
    """Dropout of each token's adapter inputs, [tokens] each, as `trials.engine.kernels.torch_ops.noise` takes it."""

    token_keys: Tensor
    thresholds: Tensor
    scales: Tensor

    def narrowed(self, tokens: Tensor | slice) -> Dropout:
        """Return the dropout of a part of the tokens."""
        return Dropout(self.token_keys[tokens], self.thresholds[tokens], self.scales[tokens])


@dataclass(frozen=True)
class ModuleSlice:
    """Part of a group that belongs to one of its modules."""

    name: str
    """Name of the module in the base model, with {} for the layer's number; if no adapter has it, its last part."""
    segments: Sequence[Segment]
    """Segments whose adapters have the module."""
    columns: slice
    """Columns of the module among the LoRA ranks of the group."""
    b: Tensor | None
    """[layers, out, ranks]; None if no adapter has the module."""

    def columns_of_segments(self) -> Iterator[tuple[Segment, slice]]:
        """Yield each segment with its columns among the LoRA ranks of the group."""
        column = self.columns.start
        for segment in self.segments:
            yield segment, slice(column, column + segment.adapter.rank)
            column += segment.adapter.rank


@dataclass(frozen=True)
class AdapterGroup:
    """Group of modules that read the same input, with the matrices of all adapters."""

    parts: Sequence[ModuleSlice]
    span: slice
    """Tokens from the first to the last adapter that has any of the modules."""
    a: Tensor
    """[layers, ranks of all parts, in]"""
    mask: Tensor | None
    """[tokens of the span, ranks of all parts], float32 or wider: the scale at a token's own adapter, 0 elsewhere.

    None if the group is of one adapter only.
    """
    scale: float
    """Factor on all products beside the mask: the scale of the only adapter, or 1 if there is a mask."""

    @property
    def present(self) -> Sequence[ModuleSlice]:
        """Parts that at least one adapter has."""
        return [part for part in self.parts if part.segments]

    def within(self, segment: Segment) -> slice:
        """Return the positions of a segment's tokens in the span."""
        return _within(self.span, segment)

    def masked(self, inner: Tensor) -> Tensor:
        """Return `inner` [tokens of the span, ranks of all parts], or its gradient, multiplied by the mask in place."""
        return inner if self.mask is None else inner.mul_(self.mask)

    def narrowed(self, tokens: Tensor, now: Mapping[int, Segment]) -> AdapterGroup:
        """Return the group for the tokens with these indices; `now` has the new segment by the `id` of the old one."""
        parts = [replace(part, segments=[now[id(segment)] for segment in part.segments]) for part in self.parts]
        span = _span(_distinct(parts))
        mask = None if self.mask is None else self.mask[tokens[span] - self.span.start]
        return replace(self, parts=parts, span=span, mask=mask)


def group_of(names: Sequence[str], stacks: Sequence[tuple[Segment, Mapping[str, Stack]]]) -> AdapterGroup | None:
    """Return the group of the modules `names`, such as q_proj; None if no adapter has any of them.

    `stacks` has every segment with its adapter's weights by module name, in the type of the products.
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
    """Return the segments whose adapters have any of the parts, each once."""
    return list({id(segment): segment for part in parts for segment in part.segments}.values())


def _span(segments: Sequence[Segment]) -> slice:
    return slice(min(segment.start for segment in segments), max(segment.end for segment in segments))


def _within(span: slice, segment: Segment) -> slice:
    return slice(segment.start - span.start, segment.end - span.start)


def _mask(parts: Sequence[ModuleSlice], span: slice, like: Tensor) -> Tensor:
    # Wider than bfloat16, in whose 8 significant bits a scale such as 20 / 48 would be rounded.
    dtype = torch.promote_types(like.dtype, torch.float32)
    mask = torch.zeros(span.stop - span.start, parts[-1].columns.stop, dtype=dtype, device=like.device)
    for part in parts:
        for segment, columns in part.columns_of_segments():
            mask[_within(span, segment), columns] = segment.adapter.scale
    return mask


def _beside(tensors: Sequence[Tensor], dimension: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dimension)
