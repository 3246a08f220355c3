"""What computes the engine's passes beside matrix products: plain torch on a CPU, Triton's kernels on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from trials.engine.kernels import torch_ops
from trials.engine.kernels.padded_attention import Attention, PaddedAttention
from trials.engine.lora.groups import AdapterGroup, Dropout
from trials.engine.lora.torch_lora import LoraOps, TorchLoraOps


@dataclass(frozen=True)
class Kernels:
    """One device's."""

    ops: ModuleType
    """With the functions of `torch_ops`."""
    attention: Callable[[Sequence[int]], Attention]
    """Of rows by their lengths in tokens."""
    products: Callable[[AdapterGroup, Dropout | None], LoraOps]
    """Of a group, and of its span's dropout."""


PLAIN = Kernels(torch_ops, PaddedAttention, TorchLoraOps)


def gpu_ops(device: torch.device) -> ModuleType | None:
    """`triton_ops`, which also reads 4-bit weights, where there is a GPU."""
    if device.type != "cuda":
        return None
    # Triton comes with torch's CUDA builds.
    from trials.engine.kernels import triton_ops

    return triton_ops


def kernels_for(device: torch.device) -> Kernels:
    """On this device."""
    ops = gpu_ops(device)
    if ops is None:
        return PLAIN
    from trials.engine.kernels.packed_attention import PackedAttention
    from trials.engine.lora.fused_lora import FusedLoraOps

    return Kernels(ops, PackedAttention, FusedLoraOps)
