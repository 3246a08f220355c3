"""Figures on their way from the GPU, read when they have arrived: nobody waits for what was queued behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Later:
    """A few numbers that are still being computed."""

    def __init__(self, figures: Sequence[Tensor]) -> None:
        """`figures` hold one number each."""
        self._arrived: torch.cuda.Event | None = None
        self._values = torch.stack(list(figures))
        if self._values.is_cuda:
            there, self._values = self._values, torch.empty(len(figures), dtype=self._values.dtype, pin_memory=True)
            self._values.copy_(there, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> list[float]:
        """The numbers, in their order; waits until they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(value) for value in self._values]
