"""Whole passes of the engine with the kernels of a GPU against those in plain torch. See `tests.support.triton`."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig
from transformers.models.auto import AutoModelForCausalLM

from tests.support.triton import DEVICE, GPU, IS_NOWHERE, WHY_NOT, mended_interpreter
from tests.trials.engine.model.test_captured_passes import Recorder
from tests.trials.engine.model.test_decoder import ALL, ATTENTION, SIZES, rows_of_lengths
from trials.config import Hyperparameters

if IS_NOWHERE:
    pytest.skip(WHY_NOT, allow_module_level=True)

from trials.engine.kernels import triton_ops
from trials.engine.kernels.packed_attention import PackedAttention
from trials.engine.lora.adapter import Adapter
from trials.engine.lora.fused_lora import FusedLoraOps, LastingLoraOps
from trials.engine.model import decoder
from trials.engine.model.activations import ActivationBuffers
from trials.engine.model.captured_passes import CapturedPasses, GraphCapture
from trials.engine.model.frozen_base import FrozenDecoder, freeze
from trials.engine.model.kernels import PLAIN, Kernels
from trials.engine.model.packed_batch import BatchSlice, PackedBatch, make_batch
from trials.model.activation_policy import ActivationPolicy

FUSED = Kernels(triton_ops, PackedAttention, FusedLoraOps, LastingLoraOps)
__all__ = ["mended_interpreter"]
HIDDEN, INNER = 64, 96
SETTINGS = [(8, 20.0, ATTENTION, 0.0), (4, 4.0, ALL, 0.3), (16, 9.0, ("gate_proj", "o_proj"), 0.1)]
"""Rank, alpha, targets and dropout of three adapters."""


@pytest.fixture(scope="module")
def frozen() -> FrozenDecoder:
    torch.manual_seed(1)
    sizes = {**SIZES, "hidden_size": HIDDEN, "intermediate_size": INNER}
    model = AutoModelForCausalLM.from_config(MistralConfig(**sizes)).requires_grad_(False)
    return freeze(model.to(DEVICE), torch.float32)


def adapters_of(frozen: FrozenDecoder) -> list[Adapter]:
    adapters = []
    for seed, (rank, alpha, targets, dropout) in enumerate(SETTINGS):
        values = {"lora_rank": rank, "lora_alpha": alpha, "target_modules": targets, "lora_dropout": dropout}
        hp = Hyperparameters.model_validate({"epochs": 1.0, **values})
        adapter = Adapter(frozen.targets, hp, seed, frozen.final_norm)
        generator = torch.Generator().manual_seed(seed)
        for pair in adapter.weights.values():
            pair.b.copy_(torch.randn(pair.b.shape, generator=generator) / 10)
        adapters.append(adapter)
    return adapters


def passed(
    frozen: FrozenDecoder, kernels: Kernels, monkeypatch: pytest.MonkeyPatch, keep: ActivationPolicy
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Losses in training, every adapter's gradient, losses in evaluation."""
    monkeypatch.setattr(decoder, "kernels_for", lambda _: kernels)
    one = decoder.Decoder(frozen, ActivationBuffers(frozen, 200, [keep] * len(frozen.layers)))
    adapters = adapters_of(frozen)

    def batch(*, training: bool) -> PackedBatch:
        shares = [
            BatchSlice(adapter, rows_of_lengths([5, 19 + n], n), 0.1, step=n) for n, adapter in enumerate(adapters)
        ]
        return make_batch(shares, torch.float32, DEVICE, training=training)

    losses = one.train(batch(training=True))
    return losses, [adapter.gradient for adapter in adapters], one.losses(batch(training=False))


@pytest.mark.parametrize("keep", [ActivationPolicy.SAVE_ALL, ActivationPolicy.RECOMPUTE_ALL])
def test_losses_and_gradients_are_those_of_plain_torch(
    frozen: FrozenDecoder, monkeypatch: pytest.MonkeyPatch, keep: ActivationPolicy
) -> None:
    losses, gradients, evaluated = passed(frozen, FUSED, monkeypatch, keep)
    expected_losses, expected_gradients, expected_evaluated = passed(frozen, PLAIN, monkeypatch, keep)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(evaluated, expected_evaluated, rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert float(torch.dist(gradient, expected)) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_passes_in_fixed_memory_are_those_of_plain_torch(
    frozen: FrozenDecoder, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """On a GPU they are CUDA graphs. The second batch is in tables that were made for another one."""
    adapter = adapters_of(frozen)[1]
    adapter.dropout = dropout
    memory = ActivationBuffers(frozen, 200, [ActivationPolicy.SAVE_ALL] * len(frozen.layers))
    monkeypatch.setattr(decoder, "kernels_for", lambda _: PLAIN)
    plain = decoder.Decoder(frozen, memory)
    monkeypatch.setattr(decoder, "kernels_for", lambda _: FUSED)
    fused = decoder.Decoder(frozen, memory)
    passes = CapturedPasses(GraphCapture() if GPU else Recorder())
    for step, lengths in enumerate([[5, 19], [40, 2, 1]]):
        share = BatchSlice(adapter, rows_of_lengths(lengths, step), 0.1, step=step)
        adapter.gradient.zero_()
        expected = plain.train(make_batch([share], torch.float32, DEVICE, training=True))
        gradient = adapter.gradient.clone()
        adapter.gradient.zero_()
        torch.testing.assert_close(passes.train(fused, share), expected, rtol=1e-5, atol=1e-5)
        assert float(torch.dist(adapter.gradient, gradient)) <= 1e-5 * float(gradient.norm())
    assert len(passes._passes) == 1
