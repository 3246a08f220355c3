"""How long a trial is and when it's evaluated."""

from __future__ import annotations

import random

import pytest

from trials.config import EvaluationSettings, Hyperparameters, Machine, Scheduler
from trials.schedule import (
    Epoch,
    checkpoint_steps,
    evaluation_tokens,
    full_length,
    logging_steps,
    micro_batch_rows,
    warmup_steps,
)

EPOCH = Epoch(rows=4500, tokens=450_000)
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
    times = evaluation_tokens(tokens, EvaluationSettings(evaluations=evaluations), EPOCH)
    assert len(times) == evaluations
    assert times[-1] == tokens
    assert times == sorted(times)
    assert min(times) >= 1
    assert max(b - a for a, b in zip([0, *times], times, strict=False)) <= tokens / evaluations + 1


def test_evaluations_by_rows_stand_at_the_same_tokens_whatever_the_batch() -> None:
    # The guide evaluates every 250 steps of 16 rows.
    times = evaluation_tokens(1_000_000, EvaluationSettings(every_rows=4000), EPOCH)
    assert times == [400_000, 800_000, 1_000_000]
    assert evaluation_tokens(300_000, EvaluationSettings(every_rows=4000), EPOCH) == [300_000]


def test_rows_of_a_micro_batch_can_be_limited() -> None:
    machine = Machine(micro_batch_tokens=100_000, micro_batch_rows=2)
    assert [micro_batch_rows(batch, 10, machine) for batch in (16, 15, 1)] == [2, 1, 1]


def test_epochs_are_passes_over_the_rows() -> None:
    length = full_length(Hyperparameters(epochs=2.5, effective_batch=10), Epoch(rows=40, tokens=4000))
    assert (length.steps, length.tokens) == (10, 10_000)


def test_rows_are_steps_times_batch() -> None:
    # The Dolly notebook: 50 steps of 4 rows; the law guide: 70,000 steps of 8.
    assert full_length(Hyperparameters(rows_seen=200, effective_batch=4), EPOCH).steps == 50
    assert full_length(Hyperparameters(rows_seen=560_000, effective_batch=8), EPOCH).steps == 70_000


def test_tokens_are_tokens_whatever_the_batch() -> None:
    small = full_length(Hyperparameters(train_tokens=50_000, effective_batch=4), EPOCH)
    large = full_length(Hyperparameters(train_tokens=50_000, effective_batch=16), EPOCH)
    assert small.tokens == large.tokens == 50_000
    assert small.steps == pytest.approx(4 * large.steps, abs=2)
    assert small.steps * 4 * EPOCH.row_tokens == pytest.approx(50_000, rel=0.02)


def test_the_shortest_trial_has_one_step() -> None:
    assert full_length(Hyperparameters(train_tokens=1, effective_batch=64), EPOCH).steps == 1


@pytest.mark.parametrize(
    ("every_rows", "batch", "steps"), [(8000, 8, 1000), (8000, 32, 250), (5, 8, 1), (None, 8, None)]
)
def test_checkpoints_are_apart_by_rows_whatever_the_batch(
    every_rows: int | None, batch: int, steps: int | None
) -> None:
    assert checkpoint_steps(batch, Machine(checkpoint_every_rows=every_rows)) == steps


def _warmup(scheduler: str, rows_seen: int, fraction: float, batch: int = 10) -> int:
    values = {"scheduler": scheduler, "rows_seen": rows_seen, "warmup_fraction": fraction, "effective_batch": batch}
    hyperparameters = Hyperparameters(**values)
    return warmup_steps(hyperparameters, full_length(hyperparameters, EPOCH))


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant_with_warmup"])
def test_warm_up_is_a_share_of_all_steps(scheduler: str) -> None:
    assert [_warmup(scheduler, rows, 0.1) for rows in (100, 4500, 45_000)] == [1, 45, 450]


def test_an_open_ended_trial_s_warm_up_is_a_share_of_an_epoch_whatever_its_length() -> None:
    assert [_warmup("inverse_sqrt", rows, 0.1) for rows in (100, 4500, 45_000)] == [45, 45, 45]
    assert _warmup("inverse_sqrt", 4500, 0.0) == 0
    assert _warmup("inverse_sqrt", 4500, 0.1, batch=1) == 100  # an epoch of 4,500 steps


def test_an_open_ended_trial_logs_as_often_whatever_its_length() -> None:
    def steps(scheduler: Scheduler, rows_seen: int, batch: int) -> int:
        hyperparameters = Hyperparameters(rows_seen=rows_seen, effective_batch=batch, scheduler=scheduler)
        return logging_steps(hyperparameters, full_length(hyperparameters, EPOCH))

    assert [steps("inverse_sqrt", rows, batch=4) for rows in (10, 45_000)] == [5, 5]
    assert [steps("inverse_sqrt", rows, batch=1) for rows in (10, 45_000)] == [10, 10]  # an epoch of 4,500 steps
    assert [steps("cosine", rows, batch=1) for rows in (10, 45_000)] == [1, 225]
