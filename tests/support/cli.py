"""Runs the project's command lines as a user does: in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import SMALL

ROOT = Path(__file__).parents[2]


def searcher(sampler: str, scheduler: str) -> list[str]:
    """Settings for --set. Tests that search differ in these, so that each is run and resumed from the command line."""
    return [f"search.sampler={sampler}", f"search.scheduler={scheduler}"]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", **extra}


def small_search(*options: str) -> list[str]:
    """A search of the demo recipe made small, with a budget that fits a busy machine."""
    return [sys.executable, "-m", "orchestrator.search", "demo", "--set", *SMALL, *options]


def run_command(command: list[str], timeout: float = 240, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=timeout, check=False
    )
