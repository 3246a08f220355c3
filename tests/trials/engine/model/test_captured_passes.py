"""Passes that are padded to fixed memory and repeated there, against passes made for one batch.

On a CPU what is captured is the pass itself, in the same fixed memory. Where there is a GPU it's a CUDA graph.
"""

from __future__ import annotations

import pytest
import torch

from tests.trials.engine.model.test_decoder import ALL, adapter_of, close, decoder_of, model_of, rows_of_lengths
from trials.engine.model.captured_passes import CapturedPasses, Pass
from trials.engine.model.packed_batch import BatchSlice, make_batch, padded_batch, padded_size

CPU = torch.device("cpu")


class Recorder:
    """Capture that repeats the pass, and counts how often it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.is_possible = True
        self.captured = 0
        self.error = error

    def __call__(self, run: Pass) -> Pass:
        self.captured += 1
        if self.error is not None:
            raise self.error
        return run


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_losses_and_gradients_are_those_of_batches_of_their_own(dropout: float) -> None:
    model, recorder = model_of(), Recorder()
    adapter = adapter_of(model, lora_rank=4, lora_alpha=6, target_modules=ALL, lora_dropout=dropout)
    decoder, passes = decoder_of(model), CapturedPasses(recorder)
    # The second to the fourth are of the first one's size, with other rows, lengths and learned tokens.
    for step, lengths in enumerate([[7, 19, 3, 12], [20, 2, 9, 11], [41], [5, 5, 5, 5, 5, 5], [90, 30]]):
        share = BatchSlice(adapter, rows_of_lengths(lengths, seed=step), 0.03, step, first_slot=2)
        adapter.gradient.zero_()
        expected = decoder.train(make_batch([share], torch.float64, CPU, training=True))
        gradient = adapter.gradient.clone()
        adapter.gradient.zero_()
        found = passes.train(decoder, share)
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
        assert close(adapter.gradient, gradient)
    assert recorder.captured == 1


def test_a_batch_has_exactly_the_size_that_it_is_padded_to() -> None:
    adapter = adapter_of(model_of())
    for lengths in ([1], [63], [64], [100, 200], [1000, 5, 3000]):
        share = BatchSlice(adapter, rows_of_lengths(lengths, seed=1), 1.0)
        size = padded_size(share, 10_000)
        assert size is not None
        batch = padded_batch(share, size, torch.float64, CPU)
        assert len(batch.input_ids) == len(batch.positions) == sum(batch.lengths) == size.tokens
        assert len(batch.learned) == len(batch.targets) == len(batch.weights) == len(batch.row_of) == size.learned
        assert batch.row_count == size.rows > len(lengths)
        assert 0 < size.tokens - share.tokens <= max(64, share.tokens / 7)


def test_a_batch_that_cannot_be_padded_within_the_limit_passes_as_it_is() -> None:
    model, recorder = model_of(), Recorder()
    adapter = adapter_of(model, target_modules=ALL)
    decoder, passes = decoder_of(model, tokens=40), CapturedPasses(recorder)
    share = BatchSlice(adapter, rows_of_lengths([30, 10], seed=1), 0.03)
    expected = decoder.train(make_batch([share], torch.float64, CPU, training=True))
    for _ in range(3):
        assert passes.train(decoder, share).tolist() == pytest.approx(expected.tolist())
    assert recorder.captured == 0


def test_other_memory_means_other_passes() -> None:
    model, recorder = model_of(), Recorder()
    adapter = adapter_of(model, target_modules=ALL)
    passes = CapturedPasses(recorder)
    share = BatchSlice(adapter, rows_of_lengths([30, 10], seed=1), 0.03)
    for _ in range(2):
        decoder = decoder_of(model)
        for _ in range(3):
            passes.train(decoder, share)
    assert recorder.captured == 2


def test_passes_that_cannot_be_captured_go_on_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model, recorder = model_of(), Recorder(RuntimeError("operation not permitted when stream is capturing"))
    adapter = adapter_of(model, target_modules=ALL)
    decoder, passes = decoder_of(model), CapturedPasses(recorder)
    share = BatchSlice(adapter, rows_of_lengths([30, 10], seed=1), 0.03)
    expected = decoder.train(make_batch([share], torch.float64, CPU, training=True))
    for _ in range(4):
        assert passes.train(decoder, share).tolist() == pytest.approx(expected.tolist())
    assert recorder.captured == 1
    assert "can't be captured as CUDA graphs, and are slower from now on: operation not permitted" in caplog.text
