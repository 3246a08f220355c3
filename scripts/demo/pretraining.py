"""Pretraining of the demo base model: text to packed tokens, tokens to weights, weights to perplexities."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import MistralConfig, MistralForCausalLM

from scripts.demo.text import documents
from scripts.demo.tokenizer import BOS_ID, EOS_ID, PAD_ID

logger = logging.getLogger(__name__)

Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Settings of the pretraining; the defaults are those of the committed model."""

    seed: int = 1
    vocab_size: int = 1536
    shards: int = 64
    documents_per_shard: int = 10_000
    steps: int = 5500
    windows_per_step: int = 256
    window_tokens: int = 256
    warmup_steps: int = 200
    learning_rate: float = 4e-3
    weight_decay: float = 0.1


def model_config(vocab_size: int) -> MistralConfig:
    """Return the architecture: every linear layer's sides are multiples of 64, which NF4 blocks need."""
    return MistralConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )


def _encode_shard(tokenizer_json: str, seed: int, shard: int, count: int, excluded: Collection[str]) -> Tokens:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    encodings = tokenizer.encode_batch(list(documents(seed, shard, count, excluded)), add_special_tokens=False)
    return np.concatenate([np.asarray(encoding.ids, dtype=np.uint16) for encoding in encodings])


def packed_tokens(tokenizer: Tokenizer, seed: int, shards: int, count: int, excluded: Collection[str]) -> Tokens:
    """Return the tokens of `shards` shards of `count` documents each, end to end; shape `[tokens]`."""
    arguments = (repeat(tokenizer.to_str()), repeat(seed), range(shards), repeat(count), repeat(excluded))
    workers = min(shards, os.cpu_count() or 1)
    if workers == 1:
        return np.concatenate(list(map(_encode_shard, *arguments)))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with ProcessPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(_encode_shard, *arguments)))


def _optimizer(model: MistralForCausalLM, plan: Pretraining) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98), fused=model.device.type == "cuda")


def pretrain(tokens: Tokens, plan: Pretraining, device: str) -> MistralForCausalLM:
    """Train a model on random windows of `tokens` under bfloat16 autocast; return it in float32 on the CPU."""
    torch.manual_seed(plan.seed)
    model = MistralForCausalLM(model_config(plan.vocab_size)).to(device)
    optimizer = _optimizer(model, plan)
    warmup = min(plan.warmup_steps, plan.steps // 2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warmup + 1), (plan.steps - step) / max(1, plan.steps - warmup))
    )
    forward = torch.compile(_loss) if device == "cuda" else _loss
    stream = torch.from_numpy(tokens.astype(np.int32)).to(device)
    offsets = torch.arange(plan.window_tokens + 1, device=device)
    chooser = torch.Generator().manual_seed(plan.seed)
    for step in range(plan.steps):
        starts = torch.randint(len(stream) - plan.window_tokens, (plan.windows_per_step, 1), generator=chooser)
        windows = stream[starts.to(device) + offsets].long()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(model, windows)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 200 == 0 or step == plan.steps - 1:
            logger.info("step %d: loss %.4f", step, loss.item())
    return model.float().cpu().eval()


@torch.no_grad()
def widen_attention_inputs(model: MistralForCausalLM, factor: float) -> None:
    """Multiply the inputs of each attention's linear layers by `factor` and divide the layers by it, in place.

    The model computes the same (exactly so for powers of two), but an adapter on those layers moves it faster. An
    update's effect grows with a layer's width: at width 128 the best learning rates would lie far above those of the
    models that people fine-tune, and a search over customary ranges would never see training diverge.
    The value layer's weights stay: its larger input is what makes the output layer's input larger.
    """
    for layer in model.model.layers:
        layer.input_layernorm.weight.mul_(factor)
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.o_proj):
            linear.weight.div_(factor)


def _loss(model: MistralForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the next token, in nats, over windows of shape `[batch, tokens + 1]`."""
    logits = model(windows[:, :-1], use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def model_perplexity(model: MistralForCausalLM, tokens: Tokens, window_tokens: int = 256) -> float:
    """Return the perplexity: exp of the mean loss of the tokens in nats, without each window's first token."""
    count = len(tokens) // window_tokens
    windows = torch.from_numpy(tokens[: count * window_tokens].astype(np.int64)).view(count, window_tokens)
    batches = [windows[start : start + 32] for start in range(0, count, 32)]
    losses = [_loss(model, batch).item() * len(batch) for batch in batches]
    return math.exp(sum(losses) / count)


def unigram_perplexity(training: Tokens, tokens: Tokens, vocab_size: int, window_tokens: int = 256) -> float:
    """Return the perplexity of a unigram model with add-one smoothing, counted on `training`.

    It is over the same tokens as `model_perplexity`: all but each window's first one.
    """
    counts = np.bincount(training, minlength=vocab_size) + 1
    log_probabilities = np.log(counts / counts.sum())
    count = len(tokens) // window_tokens
    targets = tokens[: count * window_tokens].reshape(count, window_tokens)[:, 1:]
    return math.exp(-float(log_probabilities[targets].mean()))
