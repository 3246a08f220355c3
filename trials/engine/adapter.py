"""One trial's LoRA weights and their gradients, each in one stretch of memory (arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trials.config import Hyperparameters
from trials.engine.initial import initial_weights


@dataclass(frozen=True)
class Pair:
    """The two matrices of one module: parameters, or their gradients."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank]"""


@dataclass(frozen=True)
class Stack:
    """One module's weights in all layers."""

    name: str
    """Of the module, with {} for the layer's number."""
    a: Tensor
    """[layers, rank, in]"""
    b: Tensor
    """[layers, out, rank]"""


class Adapter:
    """Weights of one trial, in float32 or wider, in PEFT's order and with its names."""

    def __init__(
        self, targets: Sequence[tuple[str, int, int]], hyperparameters: Hyperparameters, seed: int, like: Tensor
    ) -> None:
        """`targets`: name, in and out of every linear layer of the base; `like`: on their device, in their type."""
        hp = hyperparameters
        chosen = [target for target in targets if target[0].rpartition(".")[2] in hp.target_modules]
        self._targets = chosen
        self._layers = len(chosen) // len({name.rpartition(".")[2] for name, _, _ in chosen})
        self.rank = hp.lora_rank
        self.scale = hp.lora_alpha / (hp.lora_rank**0.5 if hp.use_rslora else hp.lora_rank)
        self.dropout = hp.lora_dropout
        self.seed = seed
        dtype = torch.promote_types(like.dtype, torch.float32)
        size = sum(self.rank * (wide + tall) for _, wide, tall in chosen)
        self.flat = torch.empty(size, dtype=dtype, device=like.device)
        self.gradient = torch.zeros(size, dtype=dtype, device=like.device)
        self.weights = _pairs(self.flat, chosen, self.rank)
        self.gradients = _pairs(self.gradient, chosen, self.rank)
        for pair, (a, b) in zip(self.weights.values(), initial_weights(chosen, self.rank, seed), strict=True):
            pair.a.copy_(a)
            pair.b.copy_(b)
        self._parameters = self._as_parameters()

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """As PEFT names and orders them; their gradients are views of `gradient`."""
        return self._parameters

    def stacked(self, dtype: torch.dtype) -> dict[str, Stack]:
        """A copy of the weights by the last part of the modules' names, such as q_proj."""
        modules = self._targets[: len(self._targets) // self._layers]
        copy = self.flat.to(dtype).view(self._layers, -1)
        parts = iter(copy.split([size for target in modules for size in _sizes(target, self.rank)], 1))
        return {
            name.rpartition(".")[2]: Stack(
                name.replace(".0.", ".{}.", 1),
                next(parts).unflatten(1, (self.rank, wide)),
                next(parts).unflatten(1, (tall, self.rank)),
            )
            for name, wide, tall in modules
        }

    def _as_parameters(self) -> list[tuple[str, nn.Parameter]]:
        named = []
        for module, pair in self.weights.items():
            for letter, weight, gradient in (
                ("A", pair.a, self.gradients[module].a),
                ("B", pair.b, self.gradients[module].b),
            ):
                parameter = nn.Parameter(weight)
                parameter.grad = gradient
                named.append((f"base_model.model.{module}.lora_{letter}.default.weight", parameter))
        return named


def _pairs(flat: Tensor, targets: Sequence[tuple[str, int, int]], rank: int) -> Mapping[str, Pair]:
    sizes = [size for target in targets for size in _sizes(target, rank)]
    parts = iter(flat.split(sizes))
    return {name: Pair(next(parts).view(rank, wide), next(parts).view(tall, rank)) for name, wide, tall in targets}


def _sizes(target: tuple[str, int, int], rank: int) -> tuple[int, int]:
    _, wide, tall = target
    return rank * wide, tall * rank
