"""Memory for micro-steps, cut anew when adapters come and go."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from trials.config import Hyperparameters, Machine
from trials.engine.frozen import FrozenDecoder
from trials.engine.keep import Keep
from trials.engine.planning import Plan, Rates, plan
from trials.engine.workspace import Workspace

MOST_OF_GPU = 0.94
"""Share of a GPU's memory that is reserved at most: 22.5 GiB of a 24 GB card. A driver and a desktop want some too."""

_WORTH_MOVING = 1.15
"""A micro-step has to grow by this factor for its memory to be cut anew."""


class Room:
    """How large micro-steps may be beside the adapters that are present. Belongs to the loop's thread."""

    def __init__(self, frozen: FrozenDecoder, machine: Machine) -> None:
        self._frozen = frozen
        self._machine = machine
        self._on_gpu = frozen.device.type == "cuda"
        self._base_bytes = torch.cuda.memory_allocated() if self._on_gpu else 0
        self._rates = measured_rates() if self._on_gpu else None
        self._adapters: dict[int, int] = {}
        self._longest = 1
        self.plan = self._best()
        self.workspace = Workspace(frozen, self.plan.tokens, self.plan.keep)

    def enter(self, key: int, adapter_bytes: int, longest_row: int) -> None:
        """Makes room for an adapter and rows of so many tokens. Raises torch's error if there isn't enough."""
        longest, self._longest = self._longest, max(self._longest, longest_row)
        self._adapters[key] = adapter_bytes
        try:
            self._settle()
        except torch.OutOfMemoryError:
            self._longest = longest
            self.leave(key)
            raise

    def leave(self, key: int) -> None:
        """Gives back what `enter` made room for."""
        del self._adapters[key]
        self._settle()

    def _settle(self) -> None:
        best, have = self._best(), self.plan
        is_too_large = have.tokens > best.tokens or have.keep != best.keep
        if is_too_large or best.tokens > have.tokens * _WORTH_MOVING or self._longest > have.tokens:
            self.workspace = self.workspace.replaced(best)
        self.plan = best

    def _best(self) -> Plan:
        sizes = self._frozen.sizes
        if self._rates is None:
            return Plan(max(self._machine.micro_batch_tokens, self._longest), (Keep.ALL,) * sizes.layers, 0)
        other = self._base_bytes + sum(self._adapters.values())
        best = plan(sizes, self._rates, other, self._allowed_bytes, self._longest)
        if best is None:
            raise torch.OutOfMemoryError(
                f"a row of {self._longest} tokens doesn't fit into {self._allowed_bytes / 2**30:.1f} GiB beside "
                f"{len(self._adapters)} adapters"
            )
        return best

    @property
    def _allowed_bytes(self) -> int:
        gib = self._machine.gpu_memory_gib
        total = torch.cuda.get_device_properties(0).total_memory
        return int(total * MOST_OF_GPU if gib is None else gib * 2**30)


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
