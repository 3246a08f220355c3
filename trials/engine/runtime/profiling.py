"""The share of wall time in which the GPU computes, over a whole stay of trials, for `benchmarks.engine.throughput`.

`ENGINE_PROFILE=FILE:TRIALS` in the environment of an engine's process: from its first work until so many trials have
left, torch's profiler (CUPTI) notes every kernel, and FILE gets their seconds and the wall's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from trials.system.files import write_json


class KernelClock:
    """Counts trials down, and writes its file when the last has left. Belongs to the loop's thread."""

    def __init__(self, file: Path, trials: int, activity: ProfilerActivity = ProfilerActivity.CUDA) -> None:
        self._file = file
        self._trials = trials
        self._device = activity.name
        self._profile = profile(activities=[activity])
        self._profile.start()
        self._began = time.perf_counter()

    def trial_left(self) -> None:
        """One trial has left."""
        self._trials -= 1
        if self._trials == 0:
            wall = time.perf_counter() - self._began
            self._profile.stop()
            # Here, before the last trial's end is known: the process may be ended as soon as it is.
            self._write(wall)

    def _write(self, wall: float) -> None:
        # What the profiler keeps by itself: its own list in Python would take minutes, and gigabytes.
        profiler = self._profile.profiler
        assert profiler is not None
        results = profiler.kineto_results
        assert results is not None
        # Launches, and their waiting for room in the GPU's queue, are the host's time.
        events = (event for event in results.events() if event.device_type().name == self._device)
        spans = [(event.start_ns(), event.end_ns()) for event in events]
        write_json(self._file, {"kernel_seconds": covered(spans) / 1e9, "wall_seconds": wall})


def kernel_clock() -> KernelClock | None:
    """As the environment asks for."""
    wish = os.environ.get("ENGINE_PROFILE")
    if not wish:
        return None
    file, _, trials = wish.rpartition(":")
    return KernelClock(Path(file), int(trials))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans: kernels may overlap."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
