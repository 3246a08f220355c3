"""The share of wall time in which the GPU computes, over a whole stay of trials, for `scripts.benchmark_trials`.

`ENGINE_PROFILE=FILE:TRIALS` in the environment of an engine's process: from its first work until so many trials have
left, torch's profiler (CUPTI) notes every kernel, and FILE gets their seconds and the wall's.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


class KernelClock:
    """Counts trials down, and writes its file when the last has left. Belongs to the loop's thread."""

    def __init__(self, file: Path, trials: int) -> None:
        self._file = file
        self._trials = trials
        self._profile = profile(activities=[ProfilerActivity.CUDA])
        self._profile.start()
        self._began = time.perf_counter()

    def trial_left(self) -> None:
        """One trial has left."""
        self._trials -= 1
        if self._trials == 0:
            wall = time.perf_counter() - self._began
            self._profile.stop()
            events = self._profile.events() or []  # type: ignore[no-untyped-call]
            kernels = _covered([(event.time_range.start, event.time_range.end) for event in events]) / 1e6
            self._file.write_text(json.dumps({"kernel_seconds": kernels, "wall_seconds": wall}))


def kernel_clock() -> KernelClock | None:
    """As the environment asks for."""
    wish = os.environ.get("ENGINE_PROFILE")
    if not wish:
        return None
    file, _, trials = wish.rpartition(":")
    return KernelClock(Path(file), int(trials))


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans: kernels may overlap."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
