"""The engine's hand-written passes against autograd through transformers and PEFT, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, MistralConfig, PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM

from trials.config import Hyperparameters
from trials.data.tokenization import IGNORED, TokenizedRow
from trials.engine.lora.adapter import Adapter
from trials.engine.model.activations import ActivationBuffers
from trials.engine.model.decoder import Decoder
from trials.engine.model.frozen_base import freeze
from trials.engine.model.packed_batch import BatchSlice, make_batch
from trials.errors import ModelError
from trials.model.activation_policy import ActivationPolicy

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def model_of(kind: str = "mistral") -> PreTrainedModel:
    torch.manual_seed(1)
    config = MistralConfig(**SIZES) if kind == "mistral" else LlamaConfig(**SIZES, tie_word_embeddings=True)
    return AutoModelForCausalLM.from_config(config).to(torch.float64).requires_grad_(False)


def rows_of_lengths(lengths: Sequence[int], seed: int) -> list[TokenizedRow]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(3, 61, (length,), generator=generator).tolist()
        prompt = max(1, length // 3)
        rows.append(TokenizedRow(str(length), ids, [IGNORED] * prompt + ids[prompt:]))
    return rows


def adapter_of(model: PreTrainedModel, seed: int = 3, **settings: object) -> Adapter:
    """With B away from zero, where the gradient of A isn't zero."""
    hp = Hyperparameters.model_validate({"lora_dropout": 0.0, "epochs": 1.0, **settings})
    adapter = Adapter(freeze(model, torch.float64).targets, hp, seed, torch.empty(0, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    for pair in adapter.weights.values():
        pair.b.copy_(torch.randn(pair.b.shape, generator=generator, dtype=torch.float64) / 10)
    return adapter


def decoder_of(
    model: PreTrainedModel, keep: ActivationPolicy = ActivationPolicy.SAVE_ALL, tokens: int = 400
) -> Decoder:
    frozen = freeze(model, torch.float64)
    return Decoder(frozen, ActivationBuffers(frozen, tokens, [keep] * len(frozen.layers)))


def reference(
    kind: str, adapter: Adapter, targets: Sequence[str], rows: Sequence[TokenizedRow], weight: float
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Row losses and gradients by PEFT and autograd, one row at a time."""
    alpha = adapter.scale * adapter.rank
    config = LoraConfig(task_type="CAUSAL_LM", r=adapter.rank, lora_alpha=alpha, target_modules=list(targets))
    peft: PeftModel = get_peft_model(model_of(kind), config).to(torch.float64)
    named = dict(peft.named_parameters())
    for name, parameter in adapter.named_parameters():
        named[name].data.copy_(parameter.data)
    sums = []
    for row in rows:
        logits = peft(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        loss = cross_entropy(logits, torch.tensor(row.labels[1:]), ignore_index=IGNORED, reduction="sum")
        (loss * weight).backward()
        sums.append(float(loss.detach()))
    return sums, {name: named[name].grad for name, _ in adapter.named_parameters()}


TOLERANCE = 1e-6
"""transformers takes norms and rotary angles in float32, whatever the model's type."""


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= TOLERANCE * expected.norm().clamp(min=1e-12))


@pytest.mark.parametrize("keep", list(ActivationPolicy))
@pytest.mark.parametrize(
    ("kind", "targets"), [("mistral", ATTENTION), ("mistral", ALL), ("llama", ("v_proj", "down_proj"))]
)
def test_losses_and_gradients_are_those_of_autograd(
    kind: str, targets: tuple[str, ...], keep: ActivationPolicy
) -> None:
    model = model_of(kind)
    adapter = adapter_of(model, lora_rank=4, lora_alpha=6, target_modules=targets)
    rows = rows_of_lengths([7, 19, 3, 12], seed=5)
    share = BatchSlice(adapter, rows, weight=0.03)
    found = decoder_of(model, keep).train(make_batch([share], torch.float64, torch.device("cpu"), training=True))
    losses, gradients = reference(kind, adapter, targets, rows, 0.03)
    assert found.tolist() == pytest.approx(losses, rel=TOLERANCE)
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None
        assert close(parameter.grad, gradients[name]), name


def test_adapters_in_one_pass_get_what_each_would_alone() -> None:
    model = model_of()
    settings = [(2, 5.0, ATTENTION), (8, 4.0, ALL), (3, 9.0, ("gate_proj", "o_proj"))]
    shares, expected = [], []
    for number, (rank, alpha, targets) in enumerate(settings):
        adapter = adapter_of(model, seed=number, lora_rank=rank, lora_alpha=alpha, target_modules=targets)
        rows = rows_of_lengths([5 + number, 11], seed=number)
        shares.append(BatchSlice(adapter, rows, weight=1 / (number + 2)))
        expected.append(reference("mistral", adapter, targets, rows, 1 / (number + 2)))
    base_rows = rows_of_lengths([9], seed=9)
    shares.insert(1, BatchSlice(None, base_rows, weight=1.0))
    batch = make_batch(shares, torch.float64, torch.device("cpu"), training=True)
    losses = decoder_of(model).train(batch).tolist()
    assert losses[:2] + losses[3:] == pytest.approx([loss for sums, _ in expected for loss in sums], rel=TOLERANCE)
    for share, (_, gradients) in zip([shares[0], *shares[2:]], expected, strict=True):
        assert share.adapter is not None
        for name, parameter in share.adapter.named_parameters():
            assert parameter.grad is not None
            assert close(parameter.grad, gradients[name]), name


def test_what_is_not_finite_in_one_adapters_tokens_stays_there() -> None:
    model = model_of()
    healthy, broken = (adapter_of(model, seed=seed, target_modules=ALL) for seed in (1, 2))
    alone = BatchSlice(healthy, rows_of_lengths([8, 13], seed=1), weight=0.1)
    decoder = decoder_of(model)
    decoder.train(make_batch([alone], torch.float64, torch.device("cpu"), training=True))
    expected = healthy.gradient.clone()
    healthy.gradient.zero_()
    broken.weights["model.layers.0.self_attn.q_proj"].b.fill_(1e308)
    beside = BatchSlice(broken, rows_of_lengths([6], seed=2), weight=0.1)
    losses = decoder.train(make_batch([beside, alone], torch.float64, torch.device("cpu"), training=True))
    assert not losses[0].isfinite()
    assert close(healthy.gradient, expected)


def test_losses_are_those_of_training_and_leave_no_gradient() -> None:
    model = model_of()
    adapter = adapter_of(model, target_modules=ALL)
    batch = make_batch(
        [BatchSlice(adapter, rows_of_lengths([4, 21], seed=2), weight=0.1)],
        torch.float64,
        torch.device("cpu"),
        training=False,
    )
    decoder = decoder_of(model)
    evaluated = decoder.losses(batch)
    assert adapter.gradient.count_nonzero() == 0
    assert torch.equal(evaluated, decoder.train(batch))


def test_dropout_is_that_of_each_adapter_and_of_no_neighbour() -> None:
    model = model_of()
    dropping = adapter_of(model, seed=1, target_modules=ALL, lora_dropout=0.4)
    plain = adapter_of(model, seed=2, target_modules=ALL)
    decoder = decoder_of(model)

    def gradients(*shares: BatchSlice) -> tuple[torch.Tensor, torch.Tensor]:
        for adapter in (dropping, plain):
            adapter.gradient.zero_()
        decoder.train(make_batch(shares, torch.float64, torch.device("cpu"), training=True))
        return dropping.gradient.clone(), plain.gradient.clone()

    rows = rows_of_lengths([9, 14], seed=3)
    alone = gradients(BatchSlice(dropping, rows, 0.1, step=4))[0]
    undropped = gradients(BatchSlice(plain, rows, 0.1))[1]
    both = gradients(BatchSlice(plain, rows, 0.1), BatchSlice(dropping, rows, 0.1, step=4))
    assert close(both[0], alone)
    assert close(both[1], undropped)
    assert not close(gradients(BatchSlice(dropping, rows, 0.1, step=5))[0], alone)
    split = gradients(BatchSlice(dropping, rows[:1], 0.1, step=4))[0]
    split += gradients(BatchSlice(dropping, rows[1:], 0.1, step=4, first_slot=1))[0]
    assert close(split, alone)


def test_a_model_whose_layers_are_unknown_is_refused() -> None:
    model = model_of("llama")
    model.config.model_type = "gpt2"
    with pytest.raises(ModelError, match=r"doesn't know the layers of a gpt2.*engine=trl"):
        freeze(model, torch.float64)
