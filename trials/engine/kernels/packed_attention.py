"""Attention of a micro-batch by the kernels of `triton_attention`. Imported on a GPU only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trials.engine.kernels import triton_attention
from trials.engine.kernels.triton_attention import blocks_of, settings_for


class PackedAttention:
    """Attention over rows that are packed end to end, without padding."""

    def __init__(self, lengths: Sequence[int], most_rows: int | None = None) -> None:
        """`lengths` are those of the rows, in tokens; `renew` is given at most `most_rows` rows."""
        self._lengths = lengths
        self._most_rows = most_rows
        self._blocks: triton_attention.Blocks | None = None

    def renew(self, lengths: Sequence[int]) -> None:
        """See `trials.engine.kernels.padded_attention.Attention`."""
        self._lengths = lengths
        if (now := self._blocks) is not None:
            now.overwrite(blocks_of(lengths, now.group, now.settings, now.forward.device, self._most_rows))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, training: bool) -> Tensor:
        """See `trials.engine.kernels.padded_attention.Attention`."""
        if self._blocks is None:
            settings = settings_for(q.shape[2], q.dtype, q.device)
            self._blocks = blocks_of(self._lengths, q.shape[1] // k.shape[1], settings, q.device, self._most_rows)
        return triton_attention.forward(q, k, v, out, self._blocks)

    def backward(self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, held: Any) -> Tensor:
        """See `trials.engine.kernels.padded_attention.Attention`."""
        assert self._blocks is not None
        dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        triton_attention.backward(dout, q, k, v, out, held, self._blocks, dq)
        return dq
