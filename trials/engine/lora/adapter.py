"""LoRA weights of one trial and their gradients, each as one flat tensor (arXiv 2106.09685)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trials.config import Hyperparameters
from trials.engine.lora.init import initial_weights
from trials.errors import ModelError

Target = tuple[str, int, int]
"""Linear layer of the base model: its name, number of inputs and number of outputs."""


@dataclass(frozen=True)
class Pair:
    """Matrices A and B of one module: weights, or their gradients."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank]"""


@dataclass(frozen=True)
class Stack:
    """Weights of one module in all layers."""

    name: str
    """Name of the module in the base model, with {} for the layer's number."""
    a: Tensor
    """[layers, rank, in]"""
    b: Tensor
    """[layers, out, rank]"""


class Adapter:
    """LoRA adapter of one trial, in float32 or wider, with PEFT's order and names."""

    def __init__(self, targets: Sequence[Target], hyperparameters: Hyperparameters, seed: int, like: Tensor) -> None:
        """`targets` are all linear layers of the base; `like` is a tensor on their device and of their type.

        Raises:
            ModelError: If one of the trial's target modules isn't among them.
        """
        hp = hyperparameters
        chosen = _chosen(targets, hp)
        self._targets = chosen
        self.modules = tuple(dict.fromkeys(name.rpartition(".")[2] for name, _, _ in chosen))
        """Last parts of the names of the adapted modules, such as q_proj, in the base model's order."""
        self._layers = len(chosen) // len(self.modules)
        self.rank = hp.lora_rank
        self.scale = hp.lora_alpha / (hp.lora_rank**0.5 if hp.use_rslora else hp.lora_rank)
        self.dropout = hp.lora_dropout
        self.seed = seed
        dtype = torch.promote_types(like.dtype, torch.float32)
        size = parameter_count(targets, hp)
        self.flat = torch.empty(size, dtype=dtype, device=like.device)
        self.gradient = torch.zeros(size, dtype=dtype, device=like.device)
        self.weights = _pairs(self.flat, chosen, self.rank)
        self.gradients = _pairs(self.gradient, chosen, self.rank)
        for pair, (a, b) in zip(self.weights.values(), initial_weights(chosen, self.rank, seed), strict=True):
            pair.a.copy_(a)
            pair.b.copy_(b)
        self._parameters = self._as_parameters()

    def with_weights(self, flat: Tensor) -> Adapter:
        """Return the same adapter over other weights, of the size and order of `flat`; it can't be trained."""
        other = copy.copy(self)
        other.flat = flat
        other.weights = _pairs(flat, self._targets, self.rank)
        other._parameters = other._as_parameters()
        return other

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters with PEFT's names and order; their gradients are views of `gradient`."""
        return self._parameters

    def stacked(self, dtype: torch.dtype) -> dict[str, Stack]:
        """Return the weights in `dtype` by the last part of the modules' names; views of `flat` if that is its type."""
        modules = self._targets[: len(self._targets) // self._layers]
        copy = self.flat.to(dtype).view(self._layers, -1)
        sizes = [size for target in modules for size in _sizes(target, self.rank)]
        parts = iter(torch.split(copy, sizes, 1))
        # Views with a stride from layer to layer, so that no weight is copied a second time.
        return {
            name.rpartition(".")[2]: Stack(
                name.replace(".0.", ".{}.", 1),
                torch.unflatten(next(parts), 1, (self.rank, wide)),
                torch.unflatten(next(parts), 1, (tall, self.rank)),
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


def parameter_count(targets: Sequence[Target], hyperparameters: Hyperparameters) -> int:
    """Return the number of parameters that an `Adapter` would have. Raises `ModelError` in the same cases."""
    chosen = _chosen(targets, hyperparameters)
    return sum(size for target in chosen for size in _sizes(target, hyperparameters.lora_rank))


def _chosen(targets: Sequence[Target], hyperparameters: Hyperparameters) -> list[Target]:
    allowed = {name.rpartition(".")[2] for name, _, _ in targets}
    unknown = set(hyperparameters.target_modules) - allowed
    if unknown:
        raise ModelError(
            f"target_modules {', '.join(sorted(unknown))} not in the base model's layers. "
            f"Allowed: {', '.join(sorted(allowed))}."
        )
    return [target for target in targets if target[0].rpartition(".")[2] in hyperparameters.target_modules]


def _pairs(flat: Tensor, targets: Sequence[Target], rank: int) -> Mapping[str, Pair]:
    sizes = [size for target in targets for size in _sizes(target, rank)]
    parts = iter(torch.split(flat, sizes))
    return {name: Pair(next(parts).view(rank, wide), next(parts).view(tall, rank)) for name, wide, tall in targets}


def _sizes(target: Target, rank: int) -> tuple[int, int]:
    _, wide, tall = target
    return rank * wide, tall * rank
