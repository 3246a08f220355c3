"""Initial weights of a LoRA adapter, bit for bit those after `set_seed` and `attach_adapter`.

PEFT draws on the CPU from torch's global generator. Trials that start at the same time can't share it, so each draws
from a generator of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def initial_weights(targets: Sequence[tuple[str, int, int]], rank: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return A [rank, in] and B [out, rank] of each target in turn, float32 on the CPU; B is zero.

    A target is (module name, in, out), in the order of the model's modules. PEFT (0.21) makes two `nn.Linear` per
    target, which draw their weights, and then draws A again. Only the last draw is used, but all of them advance the
    generator. Thread-safe.
    """
    generator = torch.Generator().manual_seed(seed)
    discarded = torch.empty(max((rank * max(target[1:]) for target in targets), default=0))
    weights = []
    for _, inputs, outputs in targets:
        discarded[: rank * inputs].uniform_(generator=generator)
        discarded[: outputs * rank].uniform_(generator=generator)
        weights.append((_kaiming(rank, inputs, generator), torch.zeros(outputs, rank)))
    return weights


def _kaiming(rank: int, inputs: int, generator: torch.Generator) -> Tensor:
    """Draw a matrix [rank, inputs] in the way that `nn.Linear` draws its weight (torch 2.13)."""
    return torch.nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5), generator=generator)
