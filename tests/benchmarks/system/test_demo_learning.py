"""The demo has something to find, and what is found answers right: the figures that the demo is made for."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from benchmarks.system.demo_learning import Measured, accuracies, measure

pytestmark = pytest.mark.slow

FEW_EVALUATIONS = ("evaluations=3",)
"""They take a third of a trial's time else, and the last one decides."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Measured]:
    """A trial a rate, one of them in a process beside: each has one thread, whatever the machine."""
    folder: Path = tmp_path_factory.mktemp("learning")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as beside:
        best = beside.submit(measure, 3e-3, folder, FEW_EVALUATIONS)
        others = {rate: measure(rate, folder, FEW_EVALUATIONS) for rate in (1e-5, 1e-2)}
        return {**others, 3e-3: best.result()}


def test_the_learning_rate_decides(measured: dict[float, Measured]) -> None:
    slow, best, fast = (measured[rate].loss for rate in (1e-5, 3e-3, 1e-2))
    assert best <= slow - 0.2
    assert best <= fast - 0.2


def test_labels_rise_from_chance_to_three_quarters(measured: dict[float, Measured]) -> None:
    base, ours = accuracies(measured[3e-3].adapter, rows=120)
    assert base.accuracy.value <= 0.55
    assert ours.accuracy.value >= 0.75
    assert ours.unparsed.value <= 0.05
