"""Memory that runs out under a micro-step: really, in a process that may have only so much of it."""

from __future__ import annotations

import json
import sys

import pytest

from tests.support.cli import run_command
from trials.system.oom import is_out_of_memory

pytestmark = pytest.mark.slow


def test_a_micro_step_for_which_memory_runs_out_is_taken_in_parts_and_a_single_row_ends_its_trial_alone() -> None:
    done = run_command([sys.executable, "-m", "tests.support.limited_memory"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["warnings"], "memory sufficed"
    assert all("out of memory with" in warning for warning in found["warnings"])
    assert found["way"] > 0
    assert found["apart"] < 1e-3  # of that way; measured: 0
    assert is_out_of_memory(RuntimeError(found["too long"]))
    assert not [warning for warning in found["later warnings"] if "evaluating" not in warning]
    assert found["apart again"] < 1e-3
    assert abs(found["short evaluated"] - found["evaluated"]) < 1e-6
