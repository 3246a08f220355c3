"""Low-rank parts of several LoRA adapters, computed together.

The tokens of a micro-batch lie in one segment per adapter. Their inner products x @ A^T are one matrix product over the
A matrices of all adapters side by side. A mask then multiplies a token's columns of its own adapter by that adapter's
scale (alpha / rank). All other columns become zero. That is exact for any mixture of ranks, alphas and target modules.
Modules that read the same input (queries, keys and values) share that product.

Gradients of weights are computed segment by segment, so that values that aren't finite in one adapter's tokens never
reach another's. If only some adapters have a module, tokens before the first or after the last of these are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trials.engine.lora.groups import AdapterGroup, Dropout, Segment, group_of
from trials.engine.lora.torch_lora import LoraOps

Names = tuple[str, ...]
"""Names of a layer's modules that read the same input, such as gate_proj and up_proj."""
MakeProducts = Callable[[AdapterGroup, Dropout | None], LoraOps]
"""Makes the products of a group, for the device in use, from the dropout of its span; None: nothing is dropped."""


class MultiLora:
    """Adapters of one micro-batch, applied group by group."""

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
        """Return the adapters for the tokens with these indices; `segments` are the old ones' positions among them."""
        now = {id(segment): after for segment, after in zip(self._segments, segments, strict=True)}
        groups = {names: group.narrowed(tokens, now) for names, group in self._groups.items()}
        return MultiLora(segments, self._dropout and self._dropout.narrowed(tokens), groups, self._make_products)

    def add(self, names: Names, layer: int, x: Tensor, outputs: Sequence[Tensor]) -> Tensor | None:
        """Add the low-rank parts of `x` [tokens, in] to each module's output [tokens, out] in place.

        Returns the inner products that the gradients need; None if no adapter has any of these modules.
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
        """Add the low-rank parts' gradient to `dx` [tokens, in] in place; `gradients` are those of each output.

        Returns the gradient of the inner products; None if no adapter has any of these modules.
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
        """Add the gradients of the modules' weights to those of the adapters.

        `x` was given to `add`, which returned `inner`; `gradients` were given to `add_input_gradient`, which returned
        `dinner`.
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
    """Return the adapters of a micro-batch's segments, for the modules in `groups`.

    `dtype` is that of the low-rank products. In training it's the one of all matrix products, as under autocast. In
    evaluation it's the adapters' own, as in PEFT when an adapter is used.
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
