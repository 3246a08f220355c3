"""Causal attention over rows of unequal length that lie end to end, without padding on a GPU.

On a GPU it's the FlashAttention-2 that torch brings along (arXiv 2307.08691), called by its operators because torch's
own wrapper repeats key and value heads. On a CPU the rows are padded for `scaled_dot_product_attention`: causal
attention never looks at what comes later, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Rows:
    """Where rows begin and end among the tokens of a micro-step."""

    bounds: Tensor
    """[rows + 1], int32: the first token of every row, and the number of tokens."""
    longest: int
    count: int
    places: Tensor | None
    """[tokens]: the place of each token where rows are padded to the longest; None on a GPU."""


def rows_of(lengths: list[int], device: torch.device) -> Rows:
    """From the rows' lengths in tokens."""
    counts = torch.tensor(lengths)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    longest = max(lengths)
    if device.type == "cuda":
        return Rows(bounds.to(torch.int32).pin_memory().to(device, non_blocking=True), longest, len(lengths), None)
    inside = torch.arange(longest) < counts[:, None]
    return Rows(bounds.to(torch.int32), longest, len(lengths), inside.flatten().nonzero().squeeze(1))


@dataclass(frozen=True)
class Graph:
    """Attention on a CPU as autograd recorded it."""

    out: Tensor
    leaves: tuple[Tensor, Tensor, Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Rows, *, training: bool) -> tuple[Tensor, Tensor | Graph | None]:
    """Attention of `q` [tokens, heads, size] to `k` and `v` [tokens, key heads, size]; also what the gradient needs."""
    if rows.places is None:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, rows.bounds, rows.bounds, rows.longest, rows.longest, 0.0, True, False
        )
        return out, lse
    if not training:
        return _attend_padded(q, k, v, rows), None
    with torch.enable_grad():
        leaves = (q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_())
        graph = Graph(_attend_padded(*leaves, rows), leaves)
    return graph.out.detach(), graph


def attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, held: Tensor | Graph | None, rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `held` is what `attend` gave beside `out`."""
    if isinstance(held, Tensor):
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device)
        unused = torch.empty(0, device=q.device)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            dout,
            q,
            k,
            v,
            out,
            held,
            rows.bounds,
            rows.bounds,
            rows.longest,
            rows.longest,
            0.0,
            True,
            no_dropout,
            unused,
        )
        return dq, dk, dv
    assert held is not None
    dq, dk, dv = torch.autograd.grad(held.out, held.leaves, dout)
    return dq, dk, dv


def _attend_padded(q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Tensor:
    assert rows.places is not None
    q, k, v = (_padded(tensor, rows.places, rows) for tensor in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(0, 1)[rows.places]


def _padded(tensor: Tensor, places: Tensor, rows: Rows) -> Tensor:
    """[rows, heads, longest, size], with zeros: what isn't finite in another row's tokens would come through."""
    heads = tensor.shape[1:]
    padded = tensor.new_zeros(rows.count * rows.longest, *heads).index_copy(0, places, tensor)
    return padded.view(rows.count, rows.longest, *heads).transpose(1, 2)
