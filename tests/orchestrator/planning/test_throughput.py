"""Measured speed: by kind of configuration, recent segments first, and not led astray by single ones."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from orchestrator.planning.throughput import FIRST_START_SECONDS, ThroughputModel
from orchestrator.state.run_dir import RunDir
from search_spaces.schema import Recipe
from tests.support.fake_search import BASE_LOSS, point, record
from trials.config import TrialConfig
from trials.records.trial_dir import Origin, TrialDir

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config(recipe: Recipe, **values: Any) -> TrialConfig:
    return recipe.trial_config(values)


def note(
    throughput: ThroughputModel, of: TrialConfig, each: float, times: int = 1, noise: float = 0.0, seed: int = 0
) -> None:
    rng = random.Random(seed)
    for _ in range(times):
        throughput.observe(of, 1000, 1000 * each * (1 + rng.uniform(-noise, noise)))


def test_nothing_is_known_at_first(small_recipe: Recipe) -> None:
    throughput = ThroughputModel()
    assert throughput.seconds_per_token() is None
    assert throughput.seconds(config(small_recipe), 1000) is None
    assert throughput.start_seconds == FIRST_START_SECONDS


def test_the_first_stretch_is_believed_and_later_ones_refine_it(small_recipe: Recipe) -> None:
    throughput, usual = ThroughputModel(), config(small_recipe)
    throughput.observe(usual, 1000, 20.0)  # with kernels compiled in it
    assert throughput.seconds_per_token(usual) == pytest.approx(0.02)
    note(throughput, usual, 0.01, times=6, noise=0.1)
    assert throughput.seconds_per_token(usual) == pytest.approx(0.01, rel=0.15)
    assert throughput.seconds(usual, 5000) == pytest.approx(50, rel=0.15)


def test_with_fewer_trials_at_once_each_is_faster(small_recipe: Recipe) -> None:
    throughput, usual = ThroughputModel(), config(small_recipe)
    throughput.change_slots(0.25)  # nothing was measured yet
    note(throughput, usual, 0.04, times=6, noise=0.0)
    throughput.change_slots(0.25)
    assert throughput.seconds_per_token(usual) == pytest.approx(0.01, rel=0.05)


def test_kinds_differ_and_new_ones_are_like_their_family(small_recipe: Recipe) -> None:
    throughput = ThroughputModel()
    few, many = config(small_recipe, lora_rank=8), config(small_recipe, lora_rank=8, target_modules=ALL_LINEAR)
    for seed in range(8):
        note(throughput, few, 0.010, noise=0.05, seed=seed)
        note(throughput, many, 0.016, noise=0.05, seed=seed + 100)
    assert throughput.seconds_per_token(few) == pytest.approx(0.010, rel=0.1)
    assert throughput.seconds_per_token(many) == pytest.approx(0.016, rel=0.1)
    wide = config(small_recipe, lora_rank=64, target_modules=ALL_LINEAR)
    assert throughput.seconds_per_token(wide) == pytest.approx(0.016, rel=0.1)
    other = config(small_recipe, target_modules=["q_proj"])
    assert 0.010 < (throughput.seconds_per_token(other) or 0) < 0.016
    assert throughput.seconds_per_token(None) == throughput.seconds_per_token(other)


def test_a_slow_kind_does_not_make_the_others_look_slow(small_recipe: Recipe) -> None:
    throughput = ThroughputModel()
    few, many = config(small_recipe), config(small_recipe, target_modules=ALL_LINEAR)
    note(throughput, few, 0.01, times=6)
    note(throughput, many, 0.03, times=10)
    assert throughput.seconds_per_token(few) == pytest.approx(0.01, rel=0.15)
    assert throughput.seconds_per_token(many) == pytest.approx(0.03, rel=0.1)


@pytest.mark.parametrize("outlier", [1e-4, 3.0])
def test_a_single_outlier_hardly_counts(small_recipe: Recipe, outlier: float) -> None:
    throughput, usual = ThroughputModel(), config(small_recipe)
    note(throughput, usual, 0.01, times=8, noise=0.05)
    note(throughput, usual, outlier)  # a machine that slept, a clock that jumped
    assert throughput.seconds_per_token(usual) == pytest.approx(0.01, rel=0.2)
    note(throughput, usual, 0.01, times=3)
    assert throughput.seconds_per_token(usual) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_machine_that_changed_is_believed_soon_for_all_kinds(small_recipe: Recipe, factor: float) -> None:
    throughput = ThroughputModel()
    few, many = config(small_recipe), config(small_recipe, target_modules=ALL_LINEAR)
    for _ in range(8):
        note(throughput, few, 0.01)
        note(throughput, many, 0.02)
    note(throughput, few, 0.01 * factor, times=4)
    assert throughput.seconds_per_token(few) == pytest.approx(0.01 * factor, rel=0.15)
    assert throughput.seconds_per_token(many) == pytest.approx(0.02 * factor, rel=0.25)


@pytest.mark.parametrize(
    ("tokens", "seconds"), [(0, 5.0), (-100, 5.0), (100, 0.0), (100, -3.0), (100, float("inf")), (100, float("nan"))]
)
def test_nonsense_is_left_out(small_recipe: Recipe, tokens: int, seconds: float) -> None:
    throughput = ThroughputModel()
    throughput.observe(config(small_recipe), tokens, seconds)
    throughput.observe_start(seconds if tokens == 100 else -1.0)
    assert throughput.seconds_per_token() is None
    assert throughput.start_seconds == FIRST_START_SECONDS


def test_starts_are_measured_too() -> None:
    throughput = ThroughputModel()
    for seconds in (9.0, 0.3, 0.2, 0.25, 0.2, 0.3):
        throughput.observe_start(seconds)
    assert throughput.start_seconds == pytest.approx(0.25, rel=0.4)


def test_after_a_crash_it_is_rebuilt_from_the_records(run: RunDir, small_recipe: Recipe) -> None:
    of = small_recipe.trial_config({})
    base = TrialDir(run.trial("0000"))
    base.begin(of, Origin.BASE, "base")
    record(base, point(BASE_LOSS, 0, seconds=30.0), base=True)
    trial = TrialDir(run.trial("0001"))
    trial.begin(of, Origin.START, "usual")
    for tokens, seconds in ((100, 2.0), (300, 6.0), (900, 18.0)):
        record(trial, point(2.0, tokens, seconds=seconds))
    throughput = ThroughputModel.from_records(run.records())
    assert throughput.seconds_per_token(of) == pytest.approx(0.02)
    assert (throughput.tokens, throughput.slot_seconds) == (900, 18.0)


def test_a_note_takes_as_long_after_many_as_at_first(small_recipe: Recipe) -> None:
    throughput = ThroughputModel()
    kinds = [config(small_recipe, lora_rank=2**r, effective_batch=2**b) for r in range(8) for b in range(8)]

    def seconds() -> float:
        began = time.process_time()
        for k in range(2000):
            throughput.observe(kinds[k % 64], 1000, 10.0)
            throughput.seconds_per_token(kinds[(k * 7) % 64])
        return time.process_time() - began

    first = seconds()
    for _ in range(5):
        last = seconds()
    assert last < 3 * first + 0.05
    assert last < 0.5  # 0.25 ms for both
