"""The low-rank parts of several adapters at once.

The tokens of a micro-step lie in one segment per adapter. Their low-rank products are one matrix product over the
adapters' matrices side by side; each token is left the columns of its own adapter, scaled by alpha / rank, and zero
elsewhere. That is exact for any mixture of ranks, alphas and target modules. Modules that read the same input (queries,
keys and values) share that product. Gradients of weights are taken segment by segment, so that what isn't finite in one
adapter's tokens never reaches another's. Where only some of the adapters have a module, nothing is computed for tokens
before the first or after the last of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trials.engine.lora.groups import AdapterGroup, Dropout, Segment, group_of
from trials.engine.lora.torch_lora import LoraOps

Names = tuple[str, ...]
"""Modules of a layer that read the same input, such as gate_proj and up_proj."""
MakeProducts = Callable[[AdapterGroup, Dropout | None], LoraOps]
"""Computes the products of a group with the dropout of its span, on the device in use."""


class MultiLora:
    """The adapters of one micro-step, applied group by group."""

    def __init__(
        self,
        segments: Sequence[Segment],
        dropout: Dropout | None,
        groups: Mapping[Names, AdapterGroup],
        make_products: MakeProducts,
    ) -> None:
        """See `multi_lora`."""
        self._segments = segments
        self._dropout = dropout
        self._groups = groups
        self._make_products = make_products
        self._products: dict[Names, LoraOps] = {}
        for names, group in groups.items():
            own = dropout and dropout.narrowed(group.span)
            self._products[names] = make_products(group, own)

    def narrowed(self, tokens: Tensor, segments: Sequence[Segment]) -> MultiLora:
        """The same for a part of the tokens, given by their numbers; `segments` are these tokens' own, in order."""
        now = {id(segment): after for segment, after in zip(self._segments, segments, strict=True)}
        groups = {names: group.narrowed(tokens, now) for names, group in self._groups.items()}
        return MultiLora(segments, self._dropout and self._dropout.narrowed(tokens), groups, self._make_products)

    def add(self, names: Names, layer: int, x: Tensor, outputs: Sequence[Tensor]) -> Tensor | None:
        """Adds the low-rank parts of `x` [tokens, in] to each module's output [tokens, out] in place.

        Gives the inner products that the gradients need; None where no adapter has these modules.
        """
        group = self._groups.get(names)
        if group is None:
            return None
        inner = self._products[names].inner(layer, x[group.span])
        for part, y in zip(group.parts, outputs, strict=True):
            if part.b is not None:
                _add_product(inner[:, part.columns], part.b[layer].T, group.scale, y[group.span])
        return inner

    def add_input_gradient(self, names: Names, layer: int, gradients: Sequence[Tensor], dx: Tensor) -> Tensor | None:
        """Adds the low-rank parts' gradient to `dx` [tokens, in] in place; `gradients` are those of each output.

        Gives the gradient of the inner products; None where no adapter has these modules.
        """
        group = self._groups.get(names)
        if group is None:
            return None
        pairs = zip(group.parts, gradients, strict=True)
        products = [dy[group.span] @ part.b[layer] for part, dy in pairs if part.b is not None]
        dinner = group.masked(torch.cat(products, 1))
        self._products[names].add_input_gradient(layer, dinner, dx[group.span])
        return dinner

    def add_weight_gradients(
        self, names: Names, layer: int, x: Tensor, inner: Tensor | None, dinner: Tensor, gradients: Sequence[Tensor]
    ) -> None:
        """Adds those of the modules' weights to the adapters'.

        `x` and `inner` are what `add` took and gave, `dinner` and `gradients` what `add_input_gradient` gave and took.
        """
        assert inner is not None, "add was not asked before"
        span = self._groups[names].span
        within = [dy[span] for dy in gradients]
        self._products[names].add_weight_gradients(layer, x[span], inner, dinner, within)


def multi_lora(
    segments: Sequence[Segment],
    dropout: Dropout | None,
    groups: Sequence[Names],
    dtype: torch.dtype,
    make_products: MakeProducts,
) -> MultiLora:
    """The adapters of a micro-step's segments, with modules in `groups`.

    `dtype` is that of the low-rank products: in training that of all others, as under autocast; in evaluation the
    adapters' own, as PEFT computes them for whoever uses the adapter.
    """
    stacks = [(segment, segment.adapter.stacked(dtype)) for segment in segments]
    found = {names: group_of(names, stacks) for names in groups}
    present = {names: group for names, group in found.items() if group is not None}
    return MultiLora(segments, dropout, present, make_products)


def _add_product(left: Tensor, right: Tensor, scale: float, y: Tensor) -> None:
    if left.dtype == y.dtype:
        y.addmm_(left, right, alpha=scale)
    else:
        y.copy_(torch.add(y, left @ right, alpha=scale))
