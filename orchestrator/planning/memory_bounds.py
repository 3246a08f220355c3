"""Memory of the extreme configurations of a search space: whether they fit a GPU, and how large adapters get."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.state.search import Search
from search_spaces.schema import Choices, Recipe, is_integer
from trials.engine.support import unsupported_reason
from trials.errors import ModelError
from trials.model.memory_estimate import MemoryEstimate, allowed_gib, estimate_memory
from trials.model.memory_plan import adapter_bytes
from trials.system.gpus import GpuState, gpus_here

ASSUMED_GIB = 24.0
"""GPU memory that is assumed if the planning machine has no GPU."""
_CONTEXT_GIB = 0.5
"""Memory of the CUDA context, in each process that uses a GPU."""
_DECISIVE = ("lora_rank", "target_modules", "optimizer", "adapter_average")
"""Hyperparameters that affect the minimum memory of a trial."""


@dataclass(frozen=True)
class MemoryBound:
    """One extreme configuration: its distinguishing `values`, minimum memory, and parameters of its adapter."""

    values: Mapping[str, Any]
    need: MemoryEstimate
    parameters: int


@dataclass(frozen=True)
class MemoryLimit:
    """Memory that one trial may reserve, in GiB, and the reason in words."""

    gib: float
    reason: str


def memory_bounds(search: Search) -> list[MemoryBound]:
    """Return all extreme configurations, smallest memory first; none if the base model's memory can't be predicted."""
    recipe = search.recipe
    try:
        base = search.shape
    except ModelError:
        return []
    longest = max((search.data.get(name, {}).get("longest", 0) for name in ("train", "eval")), default=0)
    itemsize = 2 if search.gpus_per_trial else 4
    found = []
    for values in _extremes(recipe):
        config = recipe.trial_config(values)
        in_engine = config.machine.engine == "shared" and unsupported_reason(config, search.ranks, base) is None
        rows = longest or config.data.max_length_tokens
        need = estimate_memory(config, base, rows, itemsize=itemsize, in_engine=in_engine)
        if need is not None:
            parameters = need.adapter_bytes // adapter_bytes(1, config.hyperparameters, itemsize)
            found.append(MemoryBound(values, need, parameters))
    return sorted(found, key=lambda bound: bound.need.total_bytes)


def memory_limit(search: Search) -> MemoryLimit:
    """Return the GPU memory that one trial may reserve.

    It is the recipe's setting. Without that, it is the smallest limit of this machine's GPUs with their present load.
    Without GPUs, it is the limit of an assumed GPU of 24 GiB.
    """
    given = search.recipe.machine.gpu_memory_gib
    if given is not None:
        return MemoryLimit(given, "machine.gpu_memory_gib")
    told = [_of(gpu) for gpu in gpus_here() if gpu.memory_bytes is not None]
    if told:
        return min(told, key=lambda each: each.gib)
    return MemoryLimit(allowed_gib(ASSUMED_GIB), f"a GPU of {ASSUMED_GIB:g} GiB is assumed")


def _of(gpu: GpuState) -> MemoryLimit:
    """Return the limit of one GPU: the usual share, or the free memory if other processes use more than the rest."""
    usual, free = allowed_gib((gpu.memory_bytes or 0) / 2**30), (gpu.free_bytes or 0) / 2**30 - _CONTEXT_GIB
    if free >= usual:
        return MemoryLimit(usual, gpu.name)
    return MemoryLimit(max(0.0, free), f"{gpu.name}, as others have taken the rest")


def _extremes(recipe: Recipe) -> list[dict[str, Any]]:
    """Return all combinations of the varied `_DECISIVE` values, then those that starting points have beside them.

    A range is represented by its two ends, and numbers also among choices by their smallest and largest value.
    """
    varied: dict[str, list[Any]] = {}
    for name in _DECISIVE:
        dimension = recipe.space.get(name)
        if dimension is not None:
            number = int if is_integer(name) else float
            ends = dimension.choices if isinstance(dimension, Choices) else map(number, (dimension.low, dimension.high))
            varied[name] = list(ends)
    for name in ("lora_rank", "adapter_average"):
        if name in varied:
            varied[name] = sorted({min(varied[name]), max(varied[name])})
    found = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    for start in map(recipe.start_values, recipe.start):
        values = {name: start[name] for name in _DECISIVE if name in start}
        found += [values] if values not in found else []
    return found
