"""Eval loss: token-weighted, in float32, on unpacked rows; independent of how rows are batched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from trials.data.tokenization import IGNORED, TokenizedRow
from trials.metrics.row_losses import RowLosses
from trials.system.distributed import ProcessGroup
from trials.system.oom import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate_rows(model: Any, rows: Sequence[TokenizedRow], batch_rows: int, *, may_halve: bool = True) -> RowLosses:
    """Return the loss of every row's completion, in the order of `rows`.

    Rows of similar length are batched together, right-padded. Non-finite losses are kept, for the caller to judge. If
    memory runs out, batches are halved where `may_halve` allows it; otherwise, and for a single row, torch's error is
    raised.
    """
    losses_of = _fitting_losses if may_halve else _batch_losses
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    sums = [math.nan] * len(rows)
    with inference(model):
        for indices in batches_by_length([len(row.input_ids) for row in rows], batch_rows):
            for index, loss in zip(indices, losses_of(causal_lm, [rows[i] for i in indices]), strict=True):
                sums[index] = loss
    return RowLosses(sums, [row.completion_tokens for row in rows])


def shared_losses(
    ranks: ProcessGroup, rows: Sequence[TokenizedRow], evaluate: Callable[[Sequence[TokenizedRow]], RowLosses]
) -> RowLosses:
    """Return the loss of every row's completion, each computed by one of the ranks, in the order of `rows`."""
    sums = ranks.map_sharded(rows, lambda part: evaluate(part).loss_sums)
    return RowLosses(sums, [row.completion_tokens for row in rows])


def _fitting_losses(causal_lm: PreTrainedModel, rows: Sequence[TokenizedRow]) -> list[float]:
    """Return what `_batch_losses` does, in halves if memory runs out; raise torch's error if it does for one row."""
    try:
        return _batch_losses(causal_lm, rows)
    except Exception as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
    # Emptied only here, because before this line the error's frames still hold tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(rows) // 2
    return [*_fitting_losses(causal_lm, rows[:half]), *_fitting_losses(causal_lm, rows[half:])]


def _batch_losses(causal_lm: PreTrainedModel, rows: Sequence[TokenizedRow]) -> list[float]:
    """Return the summed loss of each completion, in nats. Only completion positions pass the vocabulary projection."""
    device = causal_lm.get_input_embeddings().weight.device
    ids = [torch.tensor(row.input_ids) for row in rows]
    input_ids = pad_sequence(ids, batch_first=True).to(device)
    mask = pad_sequence([torch.ones_like(row_ids) for row_ids in ids], batch_first=True).to(device)
    hidden = causal_lm.get_decoder()(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    losses = []
    for i, row in enumerate(rows):
        # The hidden state at position t predicts the token at t + 1.
        targets = torch.tensor(row.labels[1:], device=device)
        learned = (targets != IGNORED).nonzero().squeeze(1)
        logits = causal_lm.get_output_embeddings()(hidden[i, learned]).float()
        losses.append(cross_entropy(logits, targets[learned], reduction="sum"))
    return [float(loss) for loss in torch.stack(losses).double()]


def batches_by_length(lengths: Sequence[int], batch_rows: int) -> Iterator[list[int]]:
    """Yield indices of rows in batches of similar length, so that padding is short; the shortest come first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_rows):
        yield order[start : start + batch_rows]


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off inside; restore the model's mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
