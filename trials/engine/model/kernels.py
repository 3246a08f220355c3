"""Choice of the operations beside matrix products: plain torch on a CPU, Triton kernels on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from trials.engine.kernels import torch_ops
from trials.engine.kernels.padded_attention import Attention, PaddedAttention
from trials.engine.lora.multi_lora import MakeProducts
from trials.engine.lora.torch_lora import TorchLoraOps


@dataclass(frozen=True)
class Kernels:
    """Implementations for one device."""

    ops: ModuleType
    """Module with the functions of `trials.engine.kernels.torch_ops`."""
    attention: Callable[[Sequence[int], int | None], Attention]
    """Makes the attention over rows of these lengths in tokens; the second argument is `PackedAttention`'s."""
    products: MakeProducts
    """Makes the low-rank products of a group, from the dropout of its span; None: nothing is dropped."""
    lasting_products: Callable[[], MakeProducts]
    """Makes what makes them for passes that are repeated in the same memory."""


PLAIN = Kernels(torch_ops, PaddedAttention, TorchLoraOps, lambda: TorchLoraOps)


def gpu_ops(device: torch.device) -> ModuleType | None:
    """Return `triton_ops`, which also dequantises 4-bit weights; None for a device that is no GPU."""
    if device.type != "cuda":
        return None
    # Imported here, because Triton comes with torch's CUDA builds only.
    from trials.engine.kernels import triton_ops

    return triton_ops


def kernels_for(device: torch.device) -> Kernels:
    """Return the implementations for this device."""
    ops = gpu_ops(device)
    if ops is None:
        return PLAIN
    from trials.engine.kernels.packed_attention import PackedAttention
    from trials.engine.lora.fused_lora import FusedLoraOps, LastingLoraOps

    return Kernels(ops, PackedAttention, FusedLoraOps, LastingLoraOps)
