"""How long a trial is and when it's evaluated."""

from __future__ import annotations

import random

import pytest

from trials.config import EvaluationSettings, Hyperparameters, Machine
from trials.data import Split, TrialData
from trials.schedule import evaluation_tokens, full_length, micro_batch_rows

_DRAW = random.Random(5)
BATCHES = [(_DRAW.randint(1, 96), _DRAW.randint(1, 3000), _DRAW.choice([1, 300, 4096, 50_000])) for _ in range(60)]


@pytest.mark.parametrize(("effective", "longest", "tokens"), BATCHES)
def test_a_micro_batch_divides_the_batch_and_fits(effective: int, longest: int, tokens: int) -> None:
    rows = micro_batch_rows(effective, longest, Machine(micro_batch_tokens=tokens))
    assert effective % rows == 0
    assert rows == 1 or rows * longest <= tokens
    larger = [n for n in range(rows + 1, effective + 1) if effective % n == 0]
    assert all(n * longest > tokens for n in larger)


@pytest.mark.parametrize("tokens", [1, 7, 1000, 99_999])
@pytest.mark.parametrize("evaluations", [1, 3, 9, 40])
def test_evaluations_are_spread_evenly_and_end_at_full_length(tokens: int, evaluations: int) -> None:
    times = evaluation_tokens(tokens, EvaluationSettings(evaluations=evaluations))
    assert len(times) == evaluations
    assert times[-1] == tokens
    assert times == sorted(times)
    assert min(times) >= 1
    assert max(b - a for a, b in zip([0, *times], times, strict=False)) <= tokens / evaluations + 1


def test_epochs_are_passes_over_the_rows(small_data: TrialData) -> None:
    train = Split(small_data.train.examples[:40], small_data.train.rows[:40], 0)
    length = full_length(Hyperparameters(epochs=2.5, effective_batch=10), train)
    assert length.steps == 10
    assert length.tokens == round(2.5 * train.tokens)


def test_tokens_are_tokens_whatever_the_batch(small_data: TrialData) -> None:
    train = small_data.train
    small = full_length(Hyperparameters(train_tokens=50_000, effective_batch=4), train)
    large = full_length(Hyperparameters(train_tokens=50_000, effective_batch=16), train)
    assert small.tokens == large.tokens == 50_000
    assert small.steps == pytest.approx(4 * large.steps, abs=2)
    assert small.steps * 4 * train.tokens / len(train.rows) == pytest.approx(50_000, rel=0.02)


def test_the_shortest_trial_has_one_step(small_data: TrialData) -> None:
    assert full_length(Hyperparameters(train_tokens=1, effective_batch=64), small_data.train).steps == 1
