"""All-reduce in processes of their own: that it works, fails or hangs is found out in time."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from orchestrator.all_reduce import AllReduce, measure
from tests.commands import ROOT

BROKEN = (
    "import os, time\nif os.environ.get('BREAKS') == 'hangs': time.sleep(600)\nraise RuntimeError('no such link')\n"
)


@pytest.fixture
def broken_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that hangs or fails as NCCL does; no NVIDIA GPU is needed for that."""
    (tmp_path / "torch.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")


def test_two_processes_add_up() -> None:
    found = measure(2, {"CUDA_VISIBLE_DEVICES": ""})
    assert (found.ranks, found.problem) == (2, "")
    assert found.gb_per_second is not None
    assert found.gb_per_second > 0
    assert found.in_words().endswith(" GB/s")


def test_one_that_fails_says_why(broken_torch: None) -> None:
    assert measure(2, {}) == AllReduce(2, None, "it fails (RuntimeError: no such link)")


def test_one_that_hangs_is_given_up_and_leaves_no_process(broken_torch: None) -> None:
    began = time.monotonic()
    found = measure(2, {"BREAKS": "hangs"}, seconds=3)
    assert found == AllReduce(2, None, "it hangs (3 s)")
    assert time.monotonic() - began < 60
    assert [child for child in psutil.Process().children() if "orchestrator.all_reduce" in child.cmdline()] == []
