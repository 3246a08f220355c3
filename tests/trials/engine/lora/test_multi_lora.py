"""Low-rank parts of several adapters: for which tokens they are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.trials.engine.model.test_decoder import ALL, adapter_of, model_of, rows_of_lengths
from trials.engine.lora.adapter import Adapter
from trials.engine.lora.multi_lora import MultiLora, multi_lora
from trials.engine.model.decoder import GATE_UP
from trials.engine.model.kernels import PLAIN
from trials.engine.model.packed_batch import BatchSlice, PackedBatch, make_batch

TARGETS = (("q_proj",), ("gate_proj",), ("up_proj", "gate_proj"), ALL, ("v_proj",))
"""Of five adapters; the middle three have modules of the MLP."""
WITH_MLP = slice(1, 4)
HIDDEN, INNER = 32, 48


def adapters_and_batch(dropout: float) -> tuple[list[Adapter], PackedBatch]:
    model = model_of()
    adapters = [
        adapter_of(model, seed=number, lora_rank=number + 2, target_modules=targets, lora_dropout=dropout)
        for number, targets in enumerate(TARGETS)
    ]
    shares = [BatchSlice(adapter, rows_of_lengths([6, 9], seed=n), 0.1, step=n) for n, adapter in enumerate(adapters)]
    return adapters, make_batch(shares, torch.float64, torch.device("cpu"), training=True)


def low_rank_of(batch: PackedBatch) -> MultiLora:
    return multi_lora(batch.segments, batch.dropout, [GATE_UP], torch.float64, PLAIN.products)


def expected_outputs(batch: PackedBatch, x: Tensor, name: str) -> Tensor:
    """One segment after the other, of layer 1."""
    y = torch.zeros(len(x), INNER, dtype=x.dtype)
    for segment in batch.segments:
        pair = segment.adapter.weights.get(f"model.layers.1.mlp.{name}")
        if pair is not None:
            tokens = slice(segment.start, segment.end)
            y[tokens] = segment.adapter.scale * (x[tokens] @ pair.a.T @ pair.b.T)
    return y


def test_a_module_that_some_adapters_lack_is_computed_from_the_first_to_the_last_that_has_it() -> None:
    _, batch = adapters_and_batch(dropout=0.0)
    parts = low_rank_of(batch)
    middle = batch.segments[WITH_MLP]
    x = torch.randn(len(batch.input_ids), HIDDEN, dtype=torch.float64)
    outputs = [torch.zeros(len(x), INNER, dtype=torch.float64) for _ in GATE_UP]
    inner = parts.add(GATE_UP, 1, x, outputs)
    assert inner is not None
    assert len(inner) == middle[-1].end - middle[0].start < len(x)
    for name, y in zip(GATE_UP, outputs, strict=True):
        torch.testing.assert_close(y, expected_outputs(batch, x, name))


def test_gradients_are_those_of_each_adapter_alone_with_dropout_too() -> None:
    adapters, batch = adapters_and_batch(dropout=0.3)
    x, dy = (torch.randn(len(batch.input_ids), size, dtype=torch.float64) for size in (HIDDEN, INNER))
    gradients = [dy, dy * 2]

    def passed(part: MultiLora) -> Tensor:
        inner = part.add(GATE_UP, 1, x, [torch.zeros_like(dy), torch.zeros_like(dy)])
        assert inner is not None
        dx = torch.zeros_like(x)
        dinner = part.add_input_gradient(GATE_UP, 1, gradients, dx)
        assert dinner is not None
        part.add_weight_gradients(GATE_UP, 1, x, inner, dinner, gradients)
        return dx

    together = passed(low_rank_of(batch))
    found = [adapter.gradient.clone() for adapter in adapters]
    for adapter in adapters:
        adapter.gradient.zero_()
    alone = torch.zeros_like(together)
    for segment in batch.segments[WITH_MLP]:
        alone += passed(multi_lora([segment], batch.dropout, [GATE_UP], torch.float64, PLAIN.products))
    torch.testing.assert_close(together, alone)
    for adapter, gradient in zip(adapters, found, strict=True):
        torch.testing.assert_close(adapter.gradient, gradient)
    assert [bool(gradient.count_nonzero()) for gradient in found] == [False, True, True, True, False]


def test_a_part_of_the_tokens_has_the_same_low_rank_parts() -> None:
    _, batch = adapters_and_batch(dropout=0.3)
    whole = low_rank_of(batch)
    part = whole.narrowed(batch.learned, batch.learned_segments)
    x = torch.randn(len(batch.input_ids), HIDDEN, dtype=torch.float64)
    outputs, outputs_of_part = (
        [torch.zeros(len(rows), INNER, dtype=torch.float64) for _ in GATE_UP] for rows in (x, batch.learned)
    )
    whole.add(GATE_UP, 1, x, outputs)
    inner = part.add(GATE_UP, 1, x[batch.learned], outputs_of_part)
    learned = batch.learned_segments[WITH_MLP]
    assert inner is not None
    assert len(inner) == learned[-1].end - learned[0].start < len(batch.learned)
    for y, y_of_part in zip(outputs, outputs_of_part, strict=True):
        torch.testing.assert_close(y_of_part, y[batch.learned])
