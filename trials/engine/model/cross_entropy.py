"""Cross-entropy over the vocabulary, of learned tokens only, in slices of tokens so that logits take little memory."""

from __future__ import annotations

import torch
from torch import Tensor

_LOGITS = 2**25
"""Logits in memory at once: 128 MiB in float32."""


def token_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Return every token's loss in nats, in float32 or wider; `hidden` [tokens, features], `head` [ids, features]."""
    losses = [_slice(part, head, ids)[0] for part, ids in _slices(hidden, targets, len(head))]
    return torch.cat(losses)


def token_losses_and_gradient(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return `token_losses`, and the gradient of their sum weighted by `weights` [tokens] with respect to `hidden`."""
    losses, gradients = [], []
    rates = torch.split(weights, _rows(len(head)))
    for (part, ids), rate in zip(_slices(hidden, targets, len(head)), rates, strict=True):
        loss, log_probabilities = _slice(part, head, ids)
        dlogits = log_probabilities.exp_()
        dlogits[torch.arange(len(ids), device=ids.device), ids] -= 1
        dlogits *= rate[:, None]
        losses.append(loss)
        gradients.append(dlogits.to(head.dtype) @ head)
    return torch.cat(losses), torch.cat(gradients)


def _slice(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = hidden @ head.T
    log_probabilities = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return -log_probabilities.gather(1, targets[:, None]).squeeze(1), log_probabilities


def _slices(hidden: Tensor, targets: Tensor, vocabulary: int) -> zip[tuple[Tensor, Tensor]]:
    rows = _rows(vocabulary)
    return zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)


def _rows(vocabulary: int) -> int:
    return max(1, _LOGITS // vocabulary)
