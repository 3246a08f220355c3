"""Memory of a micro-batch, allocated once: activations saved for the backward pass, and one weight matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trials.engine.model.frozen_base import FrozenDecoder
from trials.model.activation_policy import ActivationPolicy
from trials.model.memory_plan import MicroBatchPlan


@dataclass(frozen=True)
class LayerMemory:
    """Activations of one layer, each [tokens, features]."""

    keep: ActivationPolicy
    x: Tensor
    """The layer's input."""
    qkv: Tensor
    """Queries, keys and values side by side; overwritten by their gradients."""
    attended: Tensor
    """The attention's output, before o_proj."""
    middle: Tensor
    """The residual stream between attention and MLP."""
    gate: Tensor
    """Overwritten by its gradient."""
    up: Tensor
    """Overwritten by its gradient."""

    def view(self, tokens: int) -> LayerMemory:
        """Return views of the first `tokens` tokens."""
        tensors = (self.x, self.qkv, self.attended, self.middle, self.gate, self.up)
        return LayerMemory(self.keep, *(tensor[:tokens] for tensor in tensors))


class ActivationBuffers:
    """Activation memory for micro-batches of at most `tokens` tokens."""

    def __init__(self, frozen: FrozenDecoder, tokens: int, keep: Sequence[ActivationPolicy]) -> None:
        """`keep` has one entry a layer. For 0 tokens nothing is allocated."""
        self.tokens = tokens
        """Tokens at most; 0 once the memory is freed."""
        self.keep = tuple(keep)
        self._frozen = frozen
        largest = max(
            sum(layer.linears[name].numel for name in ("q_proj", "k_proj", "v_proj")) for layer in frozen.layers
        )
        largest = max(largest, *(linear.numel for layer in frozen.layers for linear in layer.linears.values()))
        self._weight = torch.empty(largest if tokens else 0, dtype=frozen.dtype, device=frozen.device)
        self._scratch = self._new(tokens, ActivationPolicy.RECOMPUTE_ALL, None)
        self._layers = [self._new(tokens, each, self._scratch) for each in keep]

    def replaced(self, plan: MicroBatchPlan) -> ActivationBuffers:
        """Return buffers for another plan; this object's memory is freed first, and it can't be used any more."""
        self.tokens = 0
        self._layers, self._scratch = [], self._new(0, ActivationPolicy.RECOMPUTE_ALL, None)
        self._weight = self._weight.new_empty(0)
        if torch.cuda.is_available():
            # Otherwise the allocator caches the old blocks and places the new tensors in them. It couldn't return
            # them to the device then.
            torch.cuda.empty_cache()
        return ActivationBuffers(self._frozen, plan.tokens, plan.keep)

    def layer(self, index: int, tokens: int) -> LayerMemory:
        """Return the memory of layer `index` for a micro-batch of `tokens`."""
        self._refuse_more(tokens)
        return self._layers[index].view(tokens)

    def scratch(self, tokens: int) -> LayerMemory:
        """Return the memory shared by layers of which nothing is kept."""
        self._refuse_more(tokens)
        return self._scratch.view(tokens)

    def weight(self, rows: int, columns: int) -> Tensor:
        """Return the buffer [rows, columns] for one weight matrix; every call returns the same memory."""
        return self._weight[: rows * columns].view(rows, columns)

    def _refuse_more(self, tokens: int) -> None:
        """Raise `torch.OutOfMemoryError` for more tokens than allocated, which is 0 after a failed `replaced`."""
        if tokens > self.tokens:
            raise torch.OutOfMemoryError(f"{tokens} tokens at once, and memory is set aside for {self.tokens}")

    def _new(self, tokens: int, keep: ActivationPolicy, scratch: LayerMemory | None) -> LayerMemory:
        frozen = self._frozen

        def empty(width: int) -> Tensor:
            return torch.empty(tokens, width, dtype=frozen.dtype, device=frozen.device)

        queries, keys = frozen.heads * frozen.head_size, frozen.key_heads * frozen.head_size
        x = empty(frozen.hidden)
        if scratch is not None and keep is ActivationPolicy.RECOMPUTE_ALL:
            return LayerMemory(keep, x, scratch.qkv, scratch.attended, scratch.middle, scratch.gate, scratch.up)
        attention = (empty(queries + 2 * keys), empty(queries), empty(frozen.hidden))
        if scratch is not None and keep is ActivationPolicy.RECOMPUTE_MLP:
            return LayerMemory(keep, x, *attention, scratch.gate, scratch.up)
        return LayerMemory(keep, x, *attention, empty(frozen.intermediate), empty(frozen.intermediate))
