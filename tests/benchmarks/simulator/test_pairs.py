"""Every sampler with every scheduler: a whole search on a simulated clock, whose controller dies twice."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from benchmarks.simulator.regret import Setting, play
from search_spaces.schema import SAMPLERS, SearchSettings

pytestmark = pytest.mark.slow

SCHEDULERS = get_args(SearchSettings.model_fields["scheduler"].annotation)
SETTING = Setting(budget=5, slots=2, curves=Path())
RESTARTED = 1
"""A seed for which the controller dies, and the speed probe is wrong."""


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_dies_twice_exports_a_complete_trial(sampler: str, scheduler: str) -> None:
    found = play(f"{sampler}/{scheduler}", "annealing-mild 0", RESTARTED, SETTING)
    assert found.trials >= 5
    assert found.full_length >= 1
    assert found.regret < 1.0  # better than the mean of random full trials
