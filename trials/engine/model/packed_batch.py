"""Tokens of one micro-batch: rows of one or more trials, packed end to end, the rows of a trial together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trials.data.tokenization import IGNORED, TokenizedRow
from trials.engine.kernels.sending import to_device_async
from trials.engine.lora.adapter import Adapter
from trials.engine.lora.groups import Dropout, Segment
from trials.model.dropout import token_keys

_LEAST_STEP = 64
"""Tokens between two sizes of padded batches, at least."""


@dataclass(frozen=True)
class BatchSlice:
    """Rows of one trial in a micro-batch."""

    adapter: Adapter | None
    """None: the rows pass through the base model alone."""
    rows: Sequence[TokenizedRow]
    weight: float
    """Weight of each learned token in the loss; in training, 1 / learned tokens of the whole optimizer step."""
    step: int = 0
    """Optimizer step, from 0; dropout depends on it."""
    first_slot: int = 0
    """Position of the first of these rows among all rows of that step; dropout depends on it."""

    @property
    def tokens(self) -> int:
        """Tokens of all its rows."""
        return sum(len(row.input_ids) for row in self.rows)


@dataclass(frozen=True)
class BatchSize:
    """Size to which a micro-batch is padded, so that batches of almost one size have tensors of exactly one."""

    tokens: int
    learned: int
    rows: int


@dataclass(frozen=True)
class PackedBatch:
    """Tensors of one micro-batch, on the model's device."""

    input_ids: Tensor
    """[tokens]"""
    positions: Tensor
    """[tokens], from 0 in every row."""
    lengths: Sequence[int]
    """Lengths of the rows in tokens."""
    learned: Tensor
    """[learned]: indices of the tokens whose next token is learned."""
    targets: Tensor
    """[learned]: ids of those next tokens."""
    weights: Tensor
    """[learned], float32 or wider: weight of each loss in the sum that is differentiated."""
    row_of: Tensor
    """[learned]: index of the row that each belongs to, over all batch slices."""
    row_count: int
    """Rows, and in a padded batch at least one more."""
    segments: Sequence[Segment]
    learned_segments: Sequence[Segment]
    """Segments in the order of `segments`, with positions in `learned`."""
    dropout: Dropout | None


def padded_size(share: BatchSlice, most_tokens: int) -> BatchSize | None:
    """Return the size to pad a micro-batch of this slice to; None if that has more than `most_tokens`.

    The steps between sizes are 1/16 to 1/8 of the tokens: few sizes, and little work for nothing.
    """
    tokens, learned = share.tokens, sum(row.completion_tokens for row in share.rows)
    step = max(_LEAST_STEP, 2 ** (tokens.bit_length() - 4))
    padded = min(_up(tokens + 1, step), most_tokens)
    if padded <= tokens:
        return None
    return BatchSize(padded, min(_up(learned, step), padded), _up(len(share.rows) + 1, 8))


def padded_batch(share: BatchSlice, size: BatchSize, dtype: torch.dtype, device: torch.device) -> PackedBatch:
    """Return a training batch of one slice with tensors of exactly `size`, which must be `padded_size`'s.

    What is added is one more row of the slice, of which no token is learned, and learned tokens of weight 0 at its
    end. Losses and gradients of the other rows don't depend on it, and its own gradient is 0.
    """
    batch = make_batch([_with_padding(share, size.tokens - share.tokens)], dtype, device, training=True)
    missing = size.learned - len(batch.learned)

    def filled(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, missing), value=value)

    return replace(
        batch,
        learned=filled(batch.learned, size.tokens - 1),
        targets=filled(batch.targets, 0),
        weights=filled(batch.weights, 0),
        row_of=filled(batch.row_of, len(share.rows)),
        row_count=size.rows,
        learned_segments=[replace(segment, end=size.learned) for segment in batch.learned_segments],
    )


def make_batch(
    shares: Sequence[BatchSlice], dtype: torch.dtype, device: torch.device, *, training: bool
) -> PackedBatch:
    """Pack the rows of batch slices end to end; dropout only if `training`. `dtype` is that of matrix products."""
    rows = [row for share in shares for row in share.rows]
    lengths = [len(row.input_ids) for row in rows]
    ids = torch.tensor([token for row in rows for token in row.input_ids])
    # The hidden state at a position predicts the next token of the same row.
    following = torch.tensor([label for row in rows for label in (*row.labels[1:], IGNORED)])
    is_learned = following != IGNORED
    learned = is_learned.nonzero().squeeze(1)
    row_of = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    row_weights = torch.tensor(
        [share.weight for share in shares for _ in share.rows], dtype=torch.promote_types(dtype, torch.float32)
    )
    tokens = [share.tokens for share in shares]
    learned_tokens = [int(part.sum()) for part in torch.split(is_learned, tokens)]
    dropout = _dropout(shares, positions, row_of, dtype) if training else None

    def there(tensor: Tensor) -> Tensor:
        return to_device_async(tensor, device)

    return PackedBatch(
        input_ids=there(ids),
        positions=there(positions),
        lengths=lengths,
        learned=there(learned),
        targets=there(following[learned]),
        weights=there(row_weights[row_of[learned]]),
        row_of=there(row_of[learned]),
        row_count=len(rows),
        segments=_segments(shares, tokens),
        learned_segments=_segments(shares, learned_tokens),
        dropout=dropout and Dropout(there(dropout.token_keys), there(dropout.thresholds), there(dropout.scales)),
    )


def fitting(rows: Sequence[TokenizedRow], tokens: int, start: int = 0) -> int:
    """Return the end of the rows from `start` on that have at most `tokens` together; at least one row is taken."""
    end = start
    while end < len(rows) and (tokens := tokens - len(rows[end].input_ids)) >= 0:
        end += 1
    return max(start + 1, end)


def _with_padding(share: BatchSlice, tokens: int) -> BatchSlice:
    row = TokenizedRow("padding", [0] * tokens, [IGNORED] * tokens)
    return replace(share, rows=[*share.rows, row])


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _segments(shares: Sequence[BatchSlice], tokens: Sequence[int]) -> list[Segment]:
    """Return the segments of the slices that have an adapter; `tokens` has the number of tokens of each slice."""
    segments, start = [], 0
    for share, count in zip(shares, tokens, strict=True):
        if share.adapter is not None:
            segments.append(Segment(share.adapter, start, start + count))
        start += count
    return segments


def _dropout(shares: Sequence[BatchSlice], positions: Tensor, row_of: Tensor, dtype: torch.dtype) -> Dropout | None:
    """Return the dropout of all tokens, on the CPU; None if no adapter has dropout."""
    rates = [0.0 if share.adapter is None else share.adapter.dropout for share in shares]
    if not any(rates):
        return None
    keys = []
    start = 0
    for share in shares:
        end = start + share.tokens
        slots = row_of[start:end] - row_of[start] + share.first_slot
        seed = 0 if share.adapter is None else share.adapter.seed
        keys.append(token_keys(seed, share.step, slots, positions[start:end]))
        start = end
    tokens = torch.tensor([share.tokens for share in shares])
    thresholds = torch.tensor([int(rate * 2**32) for rate in rates]).repeat_interleave(tokens)
    wide = torch.promote_types(dtype, torch.float32)
    scales = torch.tensor([1 / (1 - rate) for rate in rates], dtype=wide).repeat_interleave(tokens)
    return Dropout(torch.cat(keys), thresholds, scales)
