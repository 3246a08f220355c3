"""The products of a group of low-rank parts, by torch's own; `fused_products` has those that kernels do better."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trials.engine.kernels import torch_ops
from trials.engine.lora.groups import AdapterGroup, Dropout
from trials.model.dropout import feature_keys


class LoraOps(Protocol):
    """Of one group in one micro-step. All tensors [tokens, ...] are of the group's span."""

    def inner(self, layer: int, x: Tensor) -> Tensor:
        """The inner products [tokens, ranks] of `x` [tokens, in]: zero outside each token's own adapter."""

    def add_input_gradient(self, layer: int, dinner: Tensor, dx: Tensor) -> None:
        """Adds what `dinner`, the gradient of `inner`, says of `x` to `dx`."""

    def add_weight_gradients(
        self, layer: int, x: Tensor, inner: Tensor, dinner: Tensor, gradients: Sequence[Tensor]
    ) -> None:
        """Adds to the adapters' gradients; `gradients` are those of each module's output [tokens, out]."""


class TorchLoraOps:
    """By torch's matrix products, with dropped inputs written out."""

    def __init__(self, group: AdapterGroup, dropout: Dropout | None) -> None:
        """`dropout` is that of the group's span."""
        self._group = group
        self._dropout = dropout
        self._noise: dict[tuple[str, int], Tensor] = {}

    def inner(self, layer: int, x: Tensor) -> Tensor:
        """See `LoraOps`."""
        if self._dropout is None:
            return undropped_inner(self._group, layer, x)
        a, x = self._group.a[layer], x.to(self._group.a.dtype)
        parts = [self._dropped(part.name, layer, x) @ a[part.columns].T for part in self._group.present]
        return self._group.masked(torch.cat(parts, 1))

    def add_input_gradient(self, layer: int, dinner: Tensor, dx: Tensor) -> None:
        """See `LoraOps`."""
        if self._dropout is None:
            add_undropped_input_gradient(self._group, layer, dinner, dx)
            return
        a, scale = self._group.a[layer], self._group.scale
        for part in self._group.present:
            gradient = dinner[:, part.columns] @ a[part.columns]
            torch_ops.add_dropped(dx, gradient, self._factors(part.name, layer, gradient), scale)

    def add_weight_gradients(
        self, layer: int, x: Tensor, inner: Tensor, dinner: Tensor, gradients: Sequence[Tensor]
    ) -> None:
        """See `LoraOps`. Segment by segment, so that what isn't finite in one adapter stays there."""
        group = self._group
        for part, dy in zip(group.parts, gradients, strict=True):
            if not part.segments:
                continue
            read = self._dropped(part.name, layer, x)
            for segment, columns in part.columns_of_segments():
                tokens = group.within(segment)
                gradient = segment.adapter.gradients[part.name.format(layer)]
                _accumulate(gradient.a, dinner[tokens, columns].T, read[tokens], group.scale)
                _accumulate(gradient.b, dy[tokens].T, inner[tokens, columns], group.scale)

    def _dropped(self, name: str, layer: int, x: Tensor) -> Tensor:
        if self._dropout is None:
            return x
        return torch_ops.drop(x, self._factors(name, layer, x))

    def _factors(self, name: str, layer: int, x: Tensor) -> Tensor:
        factors = self._noise.get((name, layer))
        if factors is None:
            assert self._dropout is not None
            drop, keys = self._dropout, _feature_keys(name.format(layer), x.shape[1], x.device)
            factors = torch_ops.noise(drop.token_keys, keys, drop.thresholds, drop.scales)
            self._noise[name, layer] = factors
        return factors


def undropped_inner(group: AdapterGroup, layer: int, x: Tensor) -> Tensor:
    """`LoraOps.inner` where nothing is dropped: one product for all adapters."""
    a = group.a[layer]
    return group.masked(x.to(a.dtype) @ a.T)


def add_undropped_input_gradient(group: AdapterGroup, layer: int, dinner: Tensor, dx: Tensor) -> None:
    """`LoraOps.add_input_gradient` where nothing is dropped."""
    dx.addmm_(dinner, group.a[layer], alpha=group.scale)


@functools.cache
def _feature_keys(module: str, features: int, device: torch.device) -> Tensor:
    """The same in every micro-step."""
    return feature_keys(module, features, device)


def _accumulate(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Total += scale * left @ right, in the type of `total`."""
    total.addmm_(left.to(total.dtype), right.to(total.dtype), alpha=scale)
