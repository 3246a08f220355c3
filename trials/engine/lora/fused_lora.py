"""Low-rank products by the kernels of `triton_lora`, where they are faster than torch. Imported on a GPU only."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from trials.engine.lora.groups import AdapterGroup, Dropout
from trials.engine.lora.torch_lora import add_undropped_input_gradient, undropped_inner
from trials.engine.lora.triton_lora import (
    GroupTable,
    Noise,
    Place,
    add_dropped_input_gradient,
    add_weight_gradients,
    dropped_inner,
    group_table,
    stacked_keys,
)


class FusedLoraOps:
    """Low-rank products on a GPU.

    Without dropout, inner products and input gradients are torch's products over all adapters at once. With dropout,
    and for weight gradients in any case, kernels compute them. These read an adapter's own tokens and ranks only.
    """

    def __init__(
        self, group: AdapterGroup, dropout: Dropout | None, tables: dict[Sequence[Place], GroupTable] | None = None
    ) -> None:
        """`dropout` is that of the group's span; None: nothing is dropped.

        Tables that are in `tables` are used again, and those that aren't are added to it.
        """
        self._group = group
        self._dropout = dropout
        self._tables = {} if tables is None else tables
        self._names = tuple(part.name for part in group.parts)

    @functools.cached_property
    def _table(self) -> GroupTable:
        """Table for the kernels, made on first use: evaluation doesn't need it."""
        group = self._group
        places = []
        for number, part in enumerate(group.parts):
            for segment, columns in part.columns_of_segments():
                own = group.within(segment)
                scale = segment.adapter.scale / group.scale
                places.append(Place(segment.adapter, part.name, number, own.start, own.stop, columns.start, scale))
        key = tuple(places)
        if key not in self._tables:
            self._tables[key] = group_table(places, len(group.a), group.a.device)
        return self._tables[key]

    def inner(self, layer: int, x: Tensor) -> Tensor:
        """See `trials.engine.lora.torch_lora.LoraOps`."""
        if self._dropout is None:
            return undropped_inner(self._group, layer, x)
        a = self._group.a[layer]
        inner = a.new_zeros(len(x), len(a))
        dropped_inner(x, a, self._noise(layer, x), self._table, inner)
        return inner

    def add_input_gradient(self, layer: int, dinner: Tensor, dx: Tensor) -> None:
        """See `trials.engine.lora.torch_lora.LoraOps`."""
        if self._dropout is None:
            add_undropped_input_gradient(self._group, layer, dinner, dx)
            return
        a, scale = self._group.a[layer], self._group.scale
        add_dropped_input_gradient(dx, dinner, a, self._noise(layer, dx), self._table, scale)

    def add_weight_gradients(
        self, layer: int, x: Tensor, inner: Tensor, dinner: Tensor, gradients: Sequence[Tensor]
    ) -> None:
        """See `trials.engine.lora.torch_lora.LoraOps`."""
        noise, scale = self._noise(layer, x), self._group.scale
        add_weight_gradients(x, inner, gradients, dinner, noise, self._table, layer, scale)

    def _noise(self, layer: int, x: Tensor) -> Noise | None:
        drop = self._dropout
        if drop is None:
            return None
        keys = _keys(tuple(name.format(layer) for name in self._names), x.shape[1], x.device)
        return Noise(drop.token_keys, keys, drop.thresholds, drop.scales)


class LastingLoraOps:
    """Makes `FusedLoraOps` for groups that come again, and makes the table of each once only.

    A CUDA graph reads the same tables in every replay, and no table can be copied to the GPU while it's captured.
    """

    def __init__(self) -> None:
        self._tables: dict[Sequence[Place], GroupTable] = {}

    def __call__(self, group: AdapterGroup, dropout: Dropout | None) -> FusedLoraOps:
        """Return the products of a group; see `FusedLoraOps`."""
        return FusedLoraOps(group, dropout, self._tables)


@functools.cache
def _keys(modules: tuple[str, ...], features: int, device: torch.device) -> Tensor:
    """Cache `stacked_keys`, which are equal in every micro-batch."""
    return stacked_keys(modules, features, device)
