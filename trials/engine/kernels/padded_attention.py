"""Causal attention over rows of unequal length that are packed end to end, by torch with padding, for a CPU.

`trials.engine.kernels.packed_attention` has the one for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Attention(Protocol):
    """Attention over the rows of one micro-batch.

    Queries are [tokens, heads, size], keys and values [tokens, key heads, size].
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, training: bool) -> Any:
        """Compute attention into `out` [tokens, heads, size]; return what `backward` takes as `held`, if `training`."""

    def backward(self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, held: Any) -> Tensor:
        """Return the gradient of `q`, in new memory; overwrite `k` and `v` with theirs. `dout` is that of `out`."""

    def renew(self, lengths: Sequence[int]) -> None:
        """Go over to rows of other lengths with as many tokens in all, in the same memory on the device."""


@dataclass(frozen=True)
class _Graph:
    """Attention recorded by autograd: its output and leaves."""

    out: Tensor
    leaves: tuple[Tensor, Tensor, Tensor]


class PaddedAttention:
    """Attention by `scaled_dot_product_attention`; being causal, it never reads the padding behind a row."""

    def __init__(self, lengths: Sequence[int], most_rows: int | None = None) -> None:
        """`lengths` are those of the rows, in tokens; `most_rows` changes nothing here."""
        self.renew(lengths)

    def renew(self, lengths: Sequence[int]) -> None:
        """See `Attention`."""
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
        """Return [rows, heads, longest, size], padded with zeros.

        Anything else might not be finite, which a product with a zero weight lets through.
        """
        heads, places = tensor.shape[1:], self._places.to(tensor.device)
        padded = tensor.new_zeros(self._count * self._longest, *heads).index_copy(0, places, tensor)
        return padded.view(self._count, self._longest, *heads).transpose(1, 2)
