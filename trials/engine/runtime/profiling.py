"""Share of wall time in which the GPU computes, measured over several trials for `benchmarks.engine.throughput`.

With `ENGINE_PROFILE=FILE:TRIALS` in the environment of an engine's process, torch's profiler (CUPTI) records every
kernel. It starts when the first trial is admitted and stops when so many trials have left. FILE then gets the seconds
of kernels and of wall time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from trials.system.files import write_json


class KernelClock:
    """Profiler that stops and writes its file when so many trials have left. Belongs to the loop's thread."""

    def __init__(self, file: Path, trials: int, activity: ProfilerActivity = ProfilerActivity.CUDA) -> None:
        self._file = file
        self._trials = trials
        self._device = activity.name
        self._profile = profile(activities=[activity])
        self._profile.start()
        self._began = time.perf_counter()

    def trial_left(self) -> None:
        """Count a trial that has left; after the last one, write the file."""
        self._trials -= 1
        if self._trials == 0:
            wall = time.perf_counter() - self._began
            self._profile.stop()
            # Written before the last trial's end is reported: the process may be ended right after that.
            self._write(wall)

    def _write(self, wall: float) -> None:
        # Kineto's raw results, because the profiler's own list in Python would take minutes and gigabytes.
        profiler = self._profile.profiler
        assert profiler is not None
        results = profiler.kineto_results
        assert results is not None
        # Only the device's events: launches, and waits for space in the GPU's queue, are the host's time.
        events = (event for event in results.events() if event.device_type().name == self._device)
        spans = [(event.start_ns(), event.end_ns()) for event in events]
        write_json(self._file, {"kernel_seconds": covered(spans) / 1e9, "wall_seconds": wall})


def kernel_clock() -> KernelClock | None:
    """Return the profiler that `ENGINE_PROFILE` asks for, started; None if it isn't set."""
    wish = os.environ.get("ENGINE_PROFILE")
    if not wish:
        return None
    file, _, trials = wish.rpartition(":")
    return KernelClock(Path(file), int(trials))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of `spans` (start, end): kernels may overlap."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
