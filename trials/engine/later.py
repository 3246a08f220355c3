"""A figure on its way from the GPU, looked at when it has arrived rather than waited for."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Later:
    """One number of a tensor that is still being computed."""

    def __init__(self, value: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._value = value
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    @property
    def is_finite(self) -> bool:
        """Waits until it's there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return math.isfinite(float(self._value))
