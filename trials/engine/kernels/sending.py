"""Asynchronous copies of small tensors to the GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on the device; pinned memory spares the caller the wait for work queued on a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
