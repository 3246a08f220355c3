"""All-reduce in processes of their own: that it works, fails or hangs is found out in time."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from orchestrator.preflight.all_reduce import AllReduce, measure
from tests.support.cli import ROOT

BROKEN = """
import os, sys, time
how = os.environ.get("BREAKS")
if how == "hangs" or (how == "one, at length" and sys.argv[1] == "0"):
    time.sleep(600)
sys.stderr.write("NCCL INFO\\n" * 100_000 if how == "one, at length" else "")
raise RuntimeError("no such link")
"""


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


def test_what_nccl_prints_at_the_end_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "import atexit; atexit.register(print, 'NCCL INFO comm 0x1 rank 0 nranks 2 - Destroy COMPLETE')"
    (tmp_path / "sitecustomize.py").write_text(said)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    assert measure(2, {"CUDA_VISIBLE_DEVICES": ""}).problem == ""


def test_one_that_fails_says_why(broken_torch: None) -> None:
    assert measure(2, {}) == AllReduce(2, None, "it fails (RuntimeError: no such link)")


def test_what_one_says_at_length_is_known_while_the_other_waits(broken_torch: None) -> None:
    found = measure(2, {"BREAKS": "one, at length"}, seconds=30)
    assert found == AllReduce(2, None, "it fails (RuntimeError: no such link)")


def test_one_that_hangs_is_given_up_and_leaves_no_process(broken_torch: None) -> None:
    began = time.monotonic()
    found = measure(2, {"BREAKS": "hangs"}, seconds=3)
    assert found == AllReduce(2, None, "it hangs (3 s)")
    assert time.monotonic() - began < 60
    assert [
        child for child in psutil.Process().children() if "orchestrator.preflight.all_reduce" in child.cmdline()
    ] == []
