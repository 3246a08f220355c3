"""The share of time in which something is computed, counted over a stay of trials; here on a CPU's operations."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity

from trials.engine.runtime.profiling import KernelClock, covered, kernel_clock


def test_overlapping_spans_count_once() -> None:
    assert covered([(5.0, 7.0), (0.0, 2.0), (1.0, 4.0), (6.0, 6.5)]) == 6.0


def test_the_file_is_written_when_the_last_trial_has_left(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    clock = KernelClock(file, 2, ProfilerActivity.CPU)
    clock.trial_left()
    matrix = torch.ones(300, 300)
    for _ in range(20):
        matrix = matrix @ matrix / 300
    time.sleep(0.2)
    assert not file.exists()
    clock.trial_left()
    found = json.loads(file.read_text())
    assert 0 < found["kernel_seconds"] < found["wall_seconds"] - 0.19


def test_nobody_counts_unless_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE_PROFILE", raising=False)
    assert kernel_clock() is None
