"""Optimizer of a trial over its adapter as one flat tensor: one kernel a step, however many modules there are.

AdamW is element-wise, so the results are the same. With 8-bit state (arXiv 2110.02861) they are the same where every
matrix consists of whole blocks. The state is saved and loaded parameter by parameter, as in transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trials.config import Hyperparameters, TrialConfig
from trials.engine.lora.adapter import Adapter
from trials.engine.optim.build import build_optimizer
from trials.schedule import TrialLength

_BLOCK = 256
"""Size of the blocks in bitsandbytes' 8-bit state; each has one scale."""
_LEAST_8BIT = 4096
"""Size below which a parameter keeps 32-bit state in bitsandbytes."""
_WHOLE = ("exp_avg", "exp_avg_sq", "state1", "state2")
_BLOCKWISE = ("absmax1", "absmax2")
_WRAPPED = "__bnb_optimizer_quant_state__"

State = dict[str, Any]


class FlatOptimizer:
    """Optimizer and schedule of one adapter."""

    def __init__(self, adapter: Adapter, config: TrialConfig, length: TrialLength) -> None:
        named = adapter.named_parameters()
        self._shapes = [parameter.shape for _, parameter in named]
        self._is_flat = _may_be_flat(config.hyperparameters, self._shapes)
        if self._is_flat:
            whole = nn.Parameter(adapter.flat)
            whole.grad = adapter.gradient
            named = [("adapter", whole)]
        self._on_gpu = adapter.flat.is_cuda
        self._optimizer, self.scheduler = build_optimizer(named, config, length)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    @property
    def param_groups(self) -> list[State]:
        """Parameter groups of the wrapped optimizer; one parameter if the adapter is flat."""
        return self._optimizer.param_groups

    @property
    def is_whole(self) -> bool:
        """Whether a step that runs out of memory changes nothing: state is allocated first, then one kernel runs."""
        groups = self._optimizer.param_groups
        in_one_kernel = any(group.get("fused") for group in groups) or self._on_gpu
        return self._is_flat and in_one_kernel

    def step(self) -> None:
        """Take one step of the optimizer and of the schedule."""
        self._optimizer.step()
        self.scheduler.step()

    def state_dict(self) -> State:
        """Return the state of an equal optimizer with one parameter for each matrix."""
        found = self._optimizer.state_dict()
        if not self._is_flat:
            return found
        first, *others = found["param_groups"]
        groups = [{**first, "params": list(range(len(self._shapes)))}, *others]
        of_whole = found["state"].get(0)
        states = {} if of_whole is None else dict(enumerate(_split(of_whole, self._shapes)))
        return {"state": states, "param_groups": groups}

    def load_state_dict(self, found: State) -> None:
        """Load a state from `state_dict`, or from the optimizer of transformers' `Trainer`."""
        if self._is_flat:
            first, *others = found["param_groups"]
            states = [found["state"][number] for number in first["params"] if number in found["state"]]
            whole = {0: _joined(states)} if states else {}
            found = {"state": whole, "param_groups": [{**first, "params": [0]}, *others]}
        self._optimizer.load_state_dict(found)


def _may_be_flat(hp: Hyperparameters, shapes: Sequence[torch.Size]) -> bool:
    """Return whether one flat parameter gives the same steps; with LoRA+ it can't, as A and B have different rates."""
    in_blocks = all(shape.numel() % _BLOCK == 0 and shape.numel() >= _LEAST_8BIT for shape in shapes)
    return hp.loraplus_ratio == 1.0 and ("8bit" not in hp.optimizer or in_blocks)


def _split(whole: State, shapes: Sequence[torch.Size]) -> list[State]:
    states: list[State] = [{} for _ in shapes]
    for key, value in whole.items():
        parts: Sequence[Any]
        if key == _WRAPPED:
            parts = _split(value, shapes)
        elif key in _WHOLE:
            parts = [
                part.view(shape) for part, shape in zip(_parts(value, [s.numel() for s in shapes]), shapes, strict=True)
            ]
        elif key in _BLOCKWISE:
            parts = _parts(value, [shape.numel() // _BLOCK for shape in shapes])
        else:
            # A copy for each, because torch counts a parameter's steps in place.
            parts = [copy.deepcopy(value) for _ in shapes]
        for state, part in zip(states, parts, strict=True):
            state[key] = part
    return states


def _parts(value: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return copies of the parts, so that saving one doesn't save the whole storage."""
    return [part.clone() for part in torch.split(value.flatten(), list(sizes))]


def _joined(states: Sequence[State]) -> State:
    whole: State = {}
    for key, value in states[0].items():
        if key == _WRAPPED:
            whole[key] = _joined([state[key] for state in states])
        elif key in (*_WHOLE, *_BLOCKWISE):
            whole[key] = torch.cat([state[key].flatten() for state in states])
        else:
            whole[key] = value
    return whole
