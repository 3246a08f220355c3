"""Causal attention over rows of unequal length that lie end to end, by torch: padded, for a CPU.

`packed_attention` has it for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Attention(Protocol):
    """Over the rows of one micro-step. Queries are [tokens, heads, size], keys and values [tokens, key heads, size]."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, training: bool) -> Any:
        """Puts what every token attends to in `out` [tokens, heads, size]; in training gives what `backward` needs."""

    def backward(self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, held: Any) -> Tensor:
        """The gradient of `q` in memory of its own; those of `k` and `v` in their place."""


@dataclass(frozen=True)
class _Graph:
    """Attention as autograd recorded it."""

    out: Tensor
    leaves: tuple[Tensor, Tensor, Tensor]


class PaddedAttention:
    """By `scaled_dot_product_attention`: causal attention never looks at what comes later, padding included."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """Of the rows, in tokens."""
        self._count, self._longest = len(lengths), max(lengths)
        inside = torch.arange(self._longest) < torch.tensor(lengths)[:, None]
        self._places = inside.flatten().nonzero().squeeze(1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, training: bool) -> _Graph | None:
        """See `Attention`."""
        if not training:
            out.copy_(self._attend(q, k, v))
            return None
        with torch.enable_grad():
            leaves = (q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_())
            graph = _Graph(self._attend(*leaves), leaves)
        out.copy_(graph.out.detach())
        return graph

    def backward(self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, held: Any) -> Tensor:
        """See `Attention`."""
        dq: Tensor
        dq, dk, dv = torch.autograd.grad(held.out, held.leaves, dout)
        k.copy_(dk)
        v.copy_(dv)
        return dq

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (self._padded(tensor) for tensor in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).flatten(0, 1)[self._places.to(out.device)]

    def _padded(self, tensor: Tensor) -> Tensor:
        """[rows, heads, longest, size], with zeros: what isn't finite in another row's tokens would come through."""
        heads, places = tensor.shape[1:], self._places.to(tensor.device)
        padded = tensor.new_zeros(self._count * self._longest, *heads).index_copy(0, places, tensor)
        return padded.view(self._count, self._longest, *heads).transpose(1, 2)
