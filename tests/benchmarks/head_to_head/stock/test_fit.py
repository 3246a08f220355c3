"""What is tried of a stock trial, and what fits the CPU."""

from __future__ import annotations

import os

import pytest

from benchmarks.head_to_head.stock.fit import MOST_AT_ONCE, at_once, fit_cpu, largest, ways
from search_spaces.loader import load_recipe


def test_the_largest_of_the_space_is_tried() -> None:
    choices = "space.target_modules={choices: [[q_proj], [q_proj, k_proj, v_proj, o_proj]]}"
    recipe = load_recipe("demo", [choices], environ={}).recipe
    found = largest(recipe)
    assert (found.lora_rank, found.effective_batch) == (32, 32)
    assert found.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")


def test_recomputing_is_the_last_resort() -> None:
    assert list(ways(4)) == [(4, False), (2, False), (1, False), (4, True), (2, True), (1, True)]


@pytest.mark.parametrize(("peak", "expected"), [(1.0, MOST_AT_ONCE), (8.0, 2), (13.0, 1), (23.0, 1)])
def test_trials_side_by_side_share_the_memory(peak: float, expected: int) -> None:
    assert at_once(23.5, peak) == expected


def test_on_the_cpu_every_thread_has_its_core() -> None:
    cores = len(os.sched_getaffinity(0))
    assert fit_cpu(load_recipe("demo", [], environ={}).recipe).trials_at_once == cores
    assert fit_cpu(load_recipe("demo", [f"cpu_threads={cores + 1}"], environ={}).recipe).trials_at_once == 1
