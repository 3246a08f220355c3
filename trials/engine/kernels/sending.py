"""Small tables and rows on their way to the GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on the device; from pinned memory nothing waits for what a GPU has still to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
