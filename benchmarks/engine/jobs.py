"""A job of `benchmarks.engine.throughput`: what one process measures, for how long, and how it counts."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.engine.roofline import synchronize

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["prepare", "machine", "trl", "unsloth", "engine"]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
GIB = 2**30


@dataclass(frozen=True)
class EngineWork:
    """Trials for our engine: equal rows a step for every trial, one LoRA rank and one set of targets each."""

    trials: int
    effective_batch: int
    ranks: tuple[int, ...]
    targets: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Job:
    """Measurement of one entry. `members` processes run it at once, each with its part of the allowed memory."""

    kind: Kind
    name: str
    work: str
    seconds: float
    tiny: bool = False
    memory_gib: float = 23.5
    rows: Literal["short", "long"] = "short"
    micro_rows: int = 2
    accumulation: int = 8
    liger: bool = False
    targets: tuple[str, ...] = ATTENTION
    dropout: float = 0.05
    members: int = 1
    engine: EngineWork | None = None

    @property
    def folder(self) -> Path:
        """Folder of the model and the rows."""
        return Path(self.work)

    @property
    def gate(self) -> Path:
        """Folder in which the members of this entry tell one another how far they are."""
        return self.folder / "gates" / f"{self.name}-{self.micro_rows}x{self.accumulation}"


@dataclass(frozen=True)
class Measured:
    """Result of one entry: real tokens, padding not counted; PyTorch's peak memory, loading included."""

    tokens_per_second: float
    tokens: int
    steps: int
    seconds: float
    warm_up_seconds: float
    peak_allocated_gib: float = 0.0
    peak_reserved_gib: float = 0.0


class Window:
    """Measurement from the end of the warm-up, for `job.seconds`, with the device's work done at both ends.

    Members of one entry begin when all are warm, and train on until the last one has measured: none measures alone.
    """

    def __init__(self, job: Job, warm_up_steps: int) -> None:
        self._job = job
        self._device = device_here()
        self._warm_up_steps = warm_up_steps
        self._created = time.perf_counter()
        self._begin: tuple[float, int, int] | None = None
        self._steps = 0
        self.measured: Measured | None = None

    def result(self) -> Measured:
        """Return the measurement; `step_ended` must have returned True before."""
        assert self.measured is not None, "the training ended before it was measured"
        return self.measured

    def step_ended(self, tokens_so_far: int | Tensor) -> bool:
        """Record an optimizer step, with all real tokens until now; return True when nothing is left to do."""
        self._steps += 1
        if self.measured is not None:
            return self._all("measured")
        if self._begin is None:
            if self._steps >= self._warm_up_steps and self._all("warm"):
                self._begin = (self._now(), int(tokens_so_far), self._steps)
        elif time.perf_counter() - self._begin[0] >= self._job.seconds:
            self.measured = self._measure(*self._begin, int(tokens_so_far))
            return self._all("measured")
        return False

    def _measure(self, began: float, tokens_before: int, steps_before: int, tokens_now: int) -> Measured:
        seconds, tokens = self._now() - began, tokens_now - tokens_before
        warm_up = began - self._created
        return Measured(tokens / seconds, tokens, self._steps - steps_before, seconds, warm_up, *peak_memory_gib())

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()

    def _all(self, stage: str) -> bool:
        """Record that this member has come to `stage`; return whether every member has."""
        if self._job.members == 1:
            return True
        self._job.gate.mkdir(parents=True, exist_ok=True)
        (self._job.gate / f"{stage}-{os.getpid()}").touch()
        return len(list(self._job.gate.glob(f"{stage}-*"))) >= self._job.members


def device_here() -> str:
    """Return `cuda` if there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def limit_memory(gib: float) -> None:
    """Make PyTorch's allocator refuse more than `gib` GiB on the GPU, whatever the GPU has."""
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))


def peak_memory_gib() -> tuple[float, float]:
    """Return the GiB that this process allocated and reserved at most; zeros without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return 0.0, 0.0
    return torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
