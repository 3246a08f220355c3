"""What regret is counted from, and configurations of a space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.simulator.landscapes import Array, Reference, Task, Values, drawn, nearby, to_unit
from search_spaces.schema import Choices, Range

SPACE = {
    "learning_rate": Range(low=1e-5, high=1e-1, log=True),
    "effective_batch": Range(low=16, high=512, log=True),
    "lora_rank": Choices(choices=(4, 8, 16)),
}


class _Bowl(Task):
    """The final loss is 1 at a learning rate of 1e-3; all configurations overfit from 4/9 of a trial on."""

    base_loss = 9.0
    space = SPACE

    def losses(self, configurations: Sequence[Values], fractions: Sequence[float]) -> Array:
        off = np.array([[math.log10(values["learning_rate"] / 1e-3) ** 2] for values in configurations])
        return off + 1.0 + 0.5 * (np.asarray(fractions) - 4 / 9) ** 2


def test_the_reference_is_the_lowest_loss_on_any_curve_and_the_median_final_one() -> None:
    found = _Bowl().reference
    assert found.lowest == pytest.approx(1.0, abs=1e-4)
    # The middle of |log10(rate / 1e-3)|, which is uniform from 0 to 2.
    assert found.typical == pytest.approx(1.0 + 1.0 + 0.5 * (5 / 9) ** 2, abs=0.1)


def test_regret_is_0_for_the_lowest_loss_and_1_for_the_typical_one() -> None:
    reference = Reference(lowest=1.0, typical=3.0)
    assert [reference.regret(loss) for loss in (1.0, 3.0, 2.0)] == [0.0, 1.0, 0.5]


def test_random_configurations_are_uniform_in_the_space() -> None:
    found = drawn(SPACE, 600, np.random.default_rng(0))
    assert np.median([to_unit(SPACE["learning_rate"], each["learning_rate"]) for each in found]) == pytest.approx(
        0.5, abs=0.05
    )
    assert all(isinstance(each["effective_batch"], int) and 16 <= each["effective_batch"] <= 512 for each in found)
    assert {each["lora_rank"] for each in found} == {4, 8, 16}


def test_a_nearby_configuration_is_near_and_inside_the_space() -> None:
    random = np.random.default_rng(0)
    own = {"learning_rate": 1e-1, "effective_batch": 16, "lora_rank": 8}
    found = [nearby(SPACE, own, 0.05, random) for _ in range(200)]
    shares = [to_unit(SPACE["learning_rate"], each["learning_rate"]) for each in found]
    assert 0.7 < min(shares) < 1.0
    assert max(shares) == 1.0
    assert {each["lora_rank"] for each in found} == {4, 8, 16}
