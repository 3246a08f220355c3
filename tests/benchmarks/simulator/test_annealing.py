"""The annealing landscape follows the law, and its strong form misleads."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from benchmarks.simulator.annealing import Annealing, Form, schedule
from benchmarks.simulator.landscapes import drawn


def rank_correlations(form: Form, fraction: float) -> list[float]:
    """Spearman's correlation of early with final losses, task by task."""
    found = []
    for number in range(4):
        task = Annealing(form, number)
        losses = task.losses(drawn(task.space, 200, np.random.default_rng(number)), [fraction, 1.0])
        found.append(float(scipy.stats.spearmanr(losses[:, 0], losses[:, 1])[0]))
    return found


@pytest.mark.parametrize("fraction", [1 / 9, 1 / 3])
def test_early_losses_tell_the_last_ones_in_the_mild_form_and_not_in_the_strong(fraction: float) -> None:
    assert min(rank_correlations("mild", fraction)) > 0.4
    assert max(rank_correlations("strong", fraction)) < 0.2


def test_most_of_the_progress_of_the_best_appears_when_the_rate_has_come_down() -> None:
    task = Annealing("strong", 0)
    configurations = drawn(task.space, 200, np.random.default_rng(0))
    losses = task.losses(configurations, [1 / 9, 1 / 2, 1.0])
    best = losses[losses[:, 2].argmin()]
    assert best[1] - best[2] > best[0] - best[1]


def test_the_areas_are_those_of_the_law() -> None:
    grid, memory = 360, 18
    areas = schedule(0.0)
    rates = 0.5 * (1 + np.cos(np.pi * np.arange(grid + 1) / grid))
    # S2 as the paper has it: every drop k counts in every later step i, faded by lambda^(i - k).
    at = 200
    area = sum(
        (rates[k - 1] - rates[k]) * (1 - 1 / memory) ** (i - k) for i in range(1, at + 1) for k in range(1, i + 1)
    )
    assert areas.s2[at] == pytest.approx(area / memory)
    assert areas.s1[-1] == pytest.approx(0.5)
    assert areas.s2[-1] == pytest.approx(1.0, abs=0.05)


def test_warm_up_adds_less_to_the_sum_of_rates_and_is_no_annealing() -> None:
    with_warm_up, without = schedule(0.2), schedule(0.0)
    assert with_warm_up.s1[40] < without.s1[40]
    assert with_warm_up.s2[: int(0.2 * 360)].max() == 0.0


def test_tasks_of_a_form_differ_and_are_the_same_every_time() -> None:
    space = Annealing("mild", 0).space
    configurations = drawn(space, 3, np.random.default_rng(0))
    first, again, other = (Annealing("mild", k).losses(configurations, [1.0]).tolist() for k in (0, 0, 1))
    assert first == again
    assert first != other
