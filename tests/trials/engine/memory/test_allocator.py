"""The allocator's settings, in processes of their own: they hold for a whole one."""

from __future__ import annotations

import os
import sys

import pytest

from tests.support.cli import run_command

pytestmark = pytest.mark.slow

_OPENS = """
import torch
torch._C._accelerator_getAllocatorSettings()  # reads the environment, as the first use of CUDA does
from search_spaces.loader import load_recipe
from trials.engine.engine import Engine
recipe = load_recipe("demo", environ={}).recipe
Engine(recipe.model, recipe.machine).close()
print(torch._C._accelerator_getAllocatorSettings())
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
    ],
    ids=["", "user", "user, older name"],
)
def test_an_engine_s_memory_is_in_expandable_segments_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in [name for name in os.environ if name.endswith("ALLOC_CONF")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = run_command([sys.executable, "-c", _OPENS])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected
