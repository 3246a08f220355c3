"""Dropout by counting: what is dropped depends on where a value stands, never on what was drawn before it.

A value stands in an optimizer step, a row of it, a position in that row, a module and a feature. A hash of these and
of the trial's seed decides. So the same values are dropped however a step is split into micro-batches, padded, mixed
with other trials, recomputed or resumed; on any device; and by whoever runs the trial.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_SLOT_OR_FEATURE = 0x9E3779B1
_POSITION = 0x85EBCA77


def fmix32(h: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser, of whole numbers from 0 to 2**32 - 1 in int64, as its results are."""
    h = h ^ (h >> 16)
    # Products overflow 64 bits; their low 32, which are all that counts, are right.
    h.mul_(0x85EBCA6B).bitwise_and_(_MASK)
    h ^= h >> 13
    h.mul_(0xC2B2AE35).bitwise_and_(_MASK)
    h ^= h >> 16
    return h


def token_keys(seed: int, step: int, slots: Tensor, positions: Tensor) -> Tensor:
    """A key for each token, 0 to 2**32 - 1 in int64.

    `step` is the optimizer step from 0; `slots` (the rows' running numbers in that step) and `positions` (in their
    rows) are int64 of the same shape, or of shapes that broadcast.
    """
    of_step = fmix32(fmix32(torch.tensor((seed + _GOLDEN) & _MASK)) ^ step)
    of_row = fmix32(of_step ^ (slots * _SLOT_OR_FEATURE & _MASK))
    return fmix32(of_row ^ (positions * _POSITION & _MASK))


def feature_keys(module: str, features: int, device: torch.device | str) -> Tensor:
    """A key [features] for each input of a module, which is named as in the base model; int64 as `token_keys`."""
    numbers = torch.arange(features, device=device)
    return fmix32(zlib.crc32(module.encode()) + numbers * _SLOT_OR_FEATURE & _MASK)


def dropped(x: Tensor, token_keys: Tensor, feature_keys: Tensor, p: float) -> Tensor:
    """`x` [..., features] with a share `p` of its values at zero and the others over 1 - p; `token_keys` [...]."""
    kept = fmix32(token_keys[..., None] ^ feature_keys) >= int(p * 2**32)
    return torch.where(kept, x / (1 - p), 0)


class TokenCounter:
    """Where the tokens of the micro-batch in work stand. One for all of a model's `CounterDropout`."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._keys: Tensor | None = None

    def set_position(self, step: int, first_slot: int, tokens: Tensor) -> None:
        """A micro-batch begins: `tokens` [rows, length] or anything of that shape, padded on the right if at all."""
        rows, length = tokens.shape
        slots = torch.arange(first_slot, first_slot + rows, device=tokens.device)
        self._keys = token_keys(self._seed, step, slots[:, None], torch.arange(length, device=tokens.device))

    def keys(self, shape: torch.Size) -> Tensor:
        """The tokens' keys in the shape in which a module sees them. Raises `ValueError` if it doesn't see them all."""
        if self._keys is None or self._keys.numel() != shape.numel():
            raise ValueError(f"dropout doesn't know which tokens stand in a tensor {list(shape)}")
        return self._keys.view(shape)


class CounterDropout(nn.Module):
    """Takes the place of `nn.Dropout` before an adapter's A.

    Training calls `TokenCounter.set_position` before every forward pass.

    The backward pass may come, and recompute the forward pass, until the next micro-batch is announced.
    """

    def __init__(self, p: float, module: str, features: int, tokens: TokenCounter) -> None:
        """`p` is the share to drop, `module` the adapted module's name in the base model, with so many inputs."""
        super().__init__()
        self.p = p
        self._module, self._features = module, features
        self._tokens = tokens
        self._feature_keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """As `dropped`, of `x` [rows, length, features]; in evaluation `x` itself."""
        if not self.training:
            return x
        if self._feature_keys is None or self._feature_keys.device != x.device:
            self._feature_keys = feature_keys(self._module, self._features, x.device)
        return dropped(x, self._tokens.keys(x.shape[:-1]), self._feature_keys, self.p)


def count_dropout(model: PeftModel, seed: int) -> TokenCounter:
    """Puts `CounterDropout` in place of PEFT's; gives what has to be told where the tokens stand."""
    from peft.tuners.lora import LoraLayer

    tokens = TokenCounter(seed)
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            for adapter, dropout in module.lora_dropout.items():
                if isinstance(dropout, nn.Dropout):
                    module.lora_dropout[adapter] = CounterDropout(dropout.p, name, module.in_features, tokens)
    return tokens
