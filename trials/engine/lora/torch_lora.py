"""Low-rank products of a group of modules, by torch; `trials.engine.lora.fused_lora` has the ones for a GPU."""

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
    """Low-rank products of one group in one micro-batch. All tensors [tokens, ...] are of the group's span."""

    def inner(self, layer: int, x: Tensor) -> Tensor:
        """Return the inner products [tokens, ranks] of `x` [tokens, in]: zero outside each token's own adapter."""

    def add_input_gradient(self, layer: int, dinner: Tensor, dx: Tensor) -> None:
        """Add the gradient of `x` through `inner` to `dx`; `dinner` is the gradient of `inner`."""

    def add_weight_gradients(
        self, layer: int, x: Tensor, inner: Tensor, dinner: Tensor, gradients: Sequence[Tensor]
    ) -> None:
        """Add to the adapters' gradients; `gradients` are those of each module's output [tokens, out]."""


class TorchLoraOps:
    """Low-rank products by torch; inputs after dropout are written to memory."""

    def __init__(self, group: AdapterGroup, dropout: Dropout | None) -> None:
        """`dropout` is that of the group's span; None: nothing is dropped."""
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
        """See `LoraOps`. Goes segment by segment, so that values that aren't finite reach no other adapter."""
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
    """Compute `LoraOps.inner` without dropout: one product for all adapters."""
    a = group.a[layer]
    return group.masked(x.to(a.dtype) @ a.T)


def add_undropped_input_gradient(group: AdapterGroup, layer: int, dinner: Tensor, dx: Tensor) -> None:
    """Compute `LoraOps.add_input_gradient` without dropout."""
    dx.addmm_(dinner, group.a[layer], alpha=group.scale)


@functools.cache
def _feature_keys(module: str, features: int, device: torch.device) -> Tensor:
    """Cache `feature_keys`, which are equal in every micro-batch."""
    return feature_keys(module, features, device)


def _accumulate(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Add scale * left @ right to `total`, in its type."""
    total.addmm_(left.to(total.dtype), right.to(total.dtype), alpha=scale)
