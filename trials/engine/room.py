"""Memory for micro-steps, cut anew when adapters come and go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trials.config import Hyperparameters, Machine
from trials.data import TrialData
from trials.engine.adapter import parameter_count
from trials.engine.frozen import FrozenDecoder
from trials.engine.keep import Keep
from trials.engine.planning import MOST_TOKENS, Plan, Rates, memory_bytes, plan, seconds_per_token
from trials.engine.workspace import Workspace

MOST_OF_GPU = 0.94
"""Share of a GPU's memory that is reserved at most: 22.5 GiB of a 24 GB card. A driver and a desktop want some too."""

_WORTH_MOVING = 1.02
"""Memory is cut anew for a split that promises to be so many times as fast."""
_LONG_STEP = 1.2
"""An optimizer step of rows that are drawn at random may have so many times the tokens of a mean one."""


@dataclass(frozen=True)
class Guest:
    """What a trial brings along."""

    adapter_bytes: int
    longest_row: int
    """In tokens, of training and evaluation."""
    step_tokens: float
    """Of a mean optimizer step."""


class Room:
    """How large micro-steps may be beside the adapters that are present. Belongs to the loop's thread."""

    def __init__(self, frozen: FrozenDecoder, machine: Machine) -> None:
        self._frozen = frozen
        self._sizes = frozen.sizes
        self._machine = machine
        on_gpu = frozen.device.type == "cuda"
        self._base_bytes = torch.cuda.memory_allocated() if on_gpu else 0
        self._rates = measured_rates() if on_gpu else None
        self._guests: dict[int, Guest] = {}
        self.plan = self._best()
        self.workspace = Workspace(frozen, self.plan.tokens, self.plan.keep)
        self._keep_dense(self.plan.dense_layers)

    def enter(self, key: int, guest: Guest) -> None:
        """Makes room for a trial. Raises torch's error if there isn't enough."""
        self._guests[key] = guest
        try:
            self._settle()
        except Exception:
            self.leave(key)
            raise

    def leave(self, key: int) -> None:
        """Gives back what `enter` made room for."""
        del self._guests[key]
        self._settle()

    def _settle(self) -> None:
        best = self._best()
        if self._is_to_move(best):
            self._keep_dense(0)
            self.workspace = self.workspace.replaced(best)
            self._keep_dense(best.dense_layers)
            self.plan = best

    def _is_to_move(self, best: Plan) -> bool:
        have = self.plan
        if self._longest > self.workspace.tokens:
            return True
        if self._rates is None:
            return False
        if memory_bytes(self._sizes, have, self._other_bytes) > self._allowed_bytes:
            return True
        speeds = [seconds_per_token(self._sizes, self._rates, split) for split in (have, best)]
        return speeds[0] > speeds[1] * _WORTH_MOVING

    def _keep_dense(self, layers: int) -> None:
        """Of the quantised weights those of so many layers, beyond what is always kept of a small model."""
        if not self._sizes.is_quantized:
            return
        for index, layer in enumerate(self._frozen.layers):
            if index < layers:
                layer.keep_dense()
            else:
                layer.drop_dense()

    def _best(self) -> Plan:
        if self._rates is None:
            return Plan(max(self._machine.micro_batch_tokens, self._longest), (Keep.ALL,) * self._sizes.layers)
        wanted = sum(guest.step_tokens for guest in self._guests.values()) * _LONG_STEP
        most = min(MOST_TOKENS, int(wanted)) if self._guests else MOST_TOKENS
        best = plan(self._sizes, self._rates, self._other_bytes, self._allowed_bytes, self._longest, most)
        if best is None:
            raise torch.OutOfMemoryError(
                f"a row of {self._longest} tokens doesn't fit into {self._allowed_bytes / 2**30:.1f} GiB beside "
                f"{len(self._guests)} adapters"
            )
        return best

    @property
    def _longest(self) -> int:
        return max((guest.longest_row for guest in self._guests.values()), default=1)

    @property
    def _other_bytes(self) -> int:
        return self._base_bytes + sum(guest.adapter_bytes for guest in self._guests.values())

    @property
    def _allowed_bytes(self) -> int:
        gib = self._machine.gpu_memory_gib
        total = torch.cuda.get_device_properties(0).total_memory
        return int(total * MOST_OF_GPU if gib is None else gib * 2**30)


def guest_of(hyperparameters: Hyperparameters, data: TrialData, frozen: FrozenDecoder) -> Guest:
    """A trial, before anything of it exists."""
    parameters = parameter_count(frozen.targets, hyperparameters)
    return Guest(
        adapter_bytes(parameters, hyperparameters, frozen.dtype.itemsize),
        max(data.train.longest, data.eval.longest),
        hyperparameters.effective_batch * data.train.epoch.row_tokens,
    )


def adapter_bytes(parameters: int, hyperparameters: Hyperparameters, itemsize: int) -> int:
    """Memory of an adapter on a GPU: weights and gradient in float32, optimizer state, and copies for products."""
    state = 2 if "8bit" in hyperparameters.optimizer else 8
    return parameters * (4 + 4 + state + 2 * itemsize)


def measured_rates() -> Rates:
    """Of this GPU, in a few milliseconds: a large matrix product, and a copy."""
    matrix = torch.randn(4096, 4096, dtype=torch.bfloat16, device="cuda")
    multiplying = _seconds(lambda: matrix @ matrix)
    buffer = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    copying = _seconds(buffer.clone)
    return Rates(2 * 4096**3 / multiplying, 2 * 2**28 / copying)


def _seconds(work: Callable[[], object]) -> float:
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(5):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / 5
