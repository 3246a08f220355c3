"""Scalars copied from the GPU asynchronously; reading them doesn't wait for work that was queued after them."""

from __future__ import annotations

import torch
from torch import Tensor


class AsyncScalars:
    """Scalars that may still be on their way from the GPU."""

    def __init__(self, figures: Tensor) -> None:
        """`figures` [numbers] must not be written to any more."""
        self._arrived: torch.cuda.Event | None = None
        self._values = figures
        if figures.is_cuda:
            self._values = torch.empty(len(figures), dtype=figures.dtype, pin_memory=True)
            self._values.copy_(figures, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> list[float]:
        """Return the numbers in their order; waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        found: list[float] = self._values.tolist()
        return found
