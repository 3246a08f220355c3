"""Dropout that depends on a value's position alone, never on random numbers drawn before.

A hash decides. It covers the trial's seed and the value's optimizer step, row of that step, position in the row, module
and feature. So the same values are dropped however a step is split into micro-batches, padded, mixed with other trials,
recomputed or resumed. They are the same on every device, and in both backends.
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
    """Apply MurmurHash3's 32-bit finaliser; arguments and results are 0 to 2**32 - 1 in int64."""
    h = h ^ (h >> 16)
    # Products overflow 64 bits. Only their low 32 bits count, and those are right.
    h.mul_(0x85EBCA6B).bitwise_and_(_MASK)
    h ^= h >> 13
    h.mul_(0xC2B2AE35).bitwise_and_(_MASK)
    h ^= h >> 16
    return h


def token_keys(seed: int, step: int, slots: Tensor, positions: Tensor) -> Tensor:
    """Return a key for each token, 0 to 2**32 - 1 in int64.

    `step` is the optimizer step, counted from 0. `slots` are the rows' numbers in that step, and `positions` the
    tokens' positions in their rows. Both are int64, of the same shape or of shapes that broadcast.
    """
    of_step = fmix32(fmix32(torch.tensor((seed + _GOLDEN) & _MASK)) ^ step)
    of_row = fmix32(of_step ^ (slots * _SLOT_OR_FEATURE & _MASK))
    return fmix32(of_row ^ (positions * _POSITION & _MASK))


def feature_keys(module: str, features: int, device: torch.device | str) -> Tensor:
    """Return a key [features] for each input of a module, in int64 as `token_keys`.

    `module` is the module's name in the base model.
    """
    numbers = torch.arange(features, device=device)
    return fmix32(zlib.crc32(module.encode()) + numbers * _SLOT_OR_FEATURE & _MASK)


def dropped(x: Tensor, token_keys: Tensor, feature_keys: Tensor, p: float) -> Tensor:
    """Return `x` [..., features] with a share `p` of its values at zero, and the others divided by 1 - p.

    `token_keys` [...] and `feature_keys` [features] decide which.
    """
    kept = fmix32(token_keys[..., None] ^ feature_keys) >= int(p * 2**32)
    return torch.where(kept, x / (1 - p), 0)


class TokenCounter:
    """Positions of the tokens of the current micro-batch, shared by all `CounterDropout` of a model."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._keys: Tensor | None = None

    def set_position(self, step: int, first_slot: int, tokens: Tensor) -> None:
        """Begin a micro-batch of the shape of `tokens` [rows, length], with any padding on the right.

        `first_slot` is the number of its first row in optimizer step `step`.
        """
        rows, length = tokens.shape
        slots = torch.arange(first_slot, first_slot + rows, device=tokens.device)
        self._keys = token_keys(self._seed, step, slots[:, None], torch.arange(length, device=tokens.device))

    def keys(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return the tokens' keys in the shape in which a module sees them, on its device.

        A trainer has a micro-batch's tokens on the CPU when the position is set, and moves them later. Raises
        `ValueError` if the module sees another number of tokens.
        """
        if self._keys is None or self._keys.numel() != shape.numel():
            raise ValueError(f"dropout doesn't know which tokens stand in a tensor {list(shape)}")
        if self._keys.device != device:
            self._keys = self._keys.to(device)
        return self._keys.view(shape)


class CounterDropout(nn.Module):
    """Replacement for `nn.Dropout` before an adapter's A.

    Training calls `TokenCounter.set_position` before every forward pass. The backward pass, which may recompute the
    forward pass, must end before the next call.
    """

    def __init__(self, p: float, module: str, features: int, tokens: TokenCounter) -> None:
        """Set up dropout of a share `p` for the module of that name in the base model, with `features` inputs."""
        super().__init__()
        self.p = p
        self._module, self._features = module, features
        self._tokens = tokens
        self._feature_keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply `dropped` to `x` [rows, length, features]; in evaluation return `x` itself."""
        if not self.training:
            return x
        if self._feature_keys is None or self._feature_keys.device != x.device:
            self._feature_keys = feature_keys(self._module, self._features, x.device)
        return dropped(x, self._tokens.keys(x.shape[:-1], x.device), self._feature_keys, self.p)


def count_dropout(model: PeftModel, seed: int) -> TokenCounter:
    """Replace PEFT's dropout by `CounterDropout`; return the counter that needs each micro-batch's position."""
    from peft.tuners.lora import LoraLayer

    tokens = TokenCounter(seed)
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            for adapter, dropout in module.lora_dropout.items():
                if isinstance(dropout, nn.Dropout):
                    module.lora_dropout[adapter] = CounterDropout(dropout.p, name, module.in_features, tokens)
    return tokens
