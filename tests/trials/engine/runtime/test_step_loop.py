"""The engine's loop: who gets how much of it, and that what fails in one trial stays there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from search_spaces.schema import Recipe
from tests.trials.engine.model.test_decoder import model_of, rows_of_lengths
from trials.config import Machine
from trials.data.tokenization import TokenizedRow
from trials.engine.lora.adapter import Adapter
from trials.engine.model.decoder import Decoder
from trials.engine.model.frozen_base import freeze
from trials.engine.model.packed_batch import PackedBatch
from trials.engine.optim.flat import FlatOptimizer
from trials.engine.runtime.adapter_trainer import AdapterTrainer
from trials.engine.runtime.micro_batches import DivergedError
from trials.engine.runtime.step_loop import EngineClosedError, StepLoop
from trials.engine.runtime.warmup import compile_kernels
from trials.schedule import TrialLength

MICRO_STEP, ROW = 100, 10
"""Tokens."""
WAIT = 60


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    loop = StepLoop(freeze(model_of(), torch.float64), Machine(micro_batch_tokens=MICRO_STEP))
    yield loop
    loop.close()


Make = Callable[..., AdapterTrainer]


@pytest.fixture
def make(small_recipe: Recipe, loop: StepLoop) -> Make:
    def trainer(rows: int, *, seed: int = 1, loop: StepLoop = loop, length: int = ROW, **values: Any) -> AdapterTrainer:
        config = small_recipe.trial_config({"learning_rate": 1e-2, "lora_dropout": 0.1, "lora_rank": 4, **values})
        adapter = Adapter(loop.frozen.targets, config.hyperparameters, seed, loop.frozen.final_norm)
        flat_optimizer = FlatOptimizer(adapter, config, TrialLength(50, 5000))

        def rows_of_step(step: int) -> Sequence[TokenizedRow]:
            return rows_of_lengths([length] * rows, seed=1000 * seed + step)

        return AdapterTrainer(adapter, flat_optimizer, 1.0, rows_of_step, 0)

    return trainer


def after(steps: int) -> Callable[[int, int], bool]:
    return lambda done, _: done >= steps


def alone(trainer: AdapterTrainer, loop: StepLoop, steps: int) -> torch.Tensor:
    """The weights after so many steps."""
    loop.train(trainer, after(steps)).result(WAIT)
    return trainer.adapter.flat


def together(loop: StepLoop, *trainings: tuple[AdapterTrainer, Callable[[int, int], bool]]) -> None:
    """They join between the same two micro-steps."""
    futures = loop.call(lambda: [loop.train(trainer, is_there) for trainer, is_there in trainings]).result(WAIT)
    for future in futures:
        future.result(WAIT)


def watch(monkeypatch: pytest.MonkeyPatch, look: Callable[[PackedBatch], None]) -> None:
    """Looks at every micro-step before it's computed, in the loop's thread."""
    train = Decoder.train

    def watched(self: Decoder, batch: PackedBatch) -> torch.Tensor:
        look(batch)
        return train(self, batch)

    monkeypatch.setattr(Decoder, "train", watched)


def test_trials_get_equal_shares_of_tokens(loop: StepLoop, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = make(16), make(64, seed=2)
    apart: list[int] = []
    watch(monkeypatch, lambda _: apart.append(abs(small.tokens_served - large.tokens_served)))
    together(loop, (small, after(12)), (large, after(3)))
    assert len(apart) >= 2 * 12 * 16 * ROW / MICRO_STEP
    assert 0 < max(apart) <= MICRO_STEP


def test_a_small_step_is_taken_in_every_micro_step_beside_a_large_one(
    loop: StepLoop, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = make(4), make(64, seed=2)
    steps: list[int] = []
    watch(monkeypatch, lambda _: steps.append(small.steps_done))
    together(loop, (small, after(10)), (large, after(1)))
    assert steps[:10] == list(range(10))


def test_adapters_of_the_same_modules_lie_together_in_a_micro_step(
    loop: StepLoop, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Adapter]] = []
    watch(monkeypatch, lambda batch: seen.append([segment.adapter for segment in batch.segments]))
    targets = [("q_proj", "down_proj"), ("q_proj",), ("q_proj", "down_proj"), ("v_proj",), ("q_proj",)]
    trainers = [make(2, seed=seed, target_modules=modules) for seed, modules in enumerate(targets)]
    together(loop, *[(trainer, after(2)) for trainer in trainers])
    for order in ([1, 4, 3, 0, 2], [1, 4, 3, 0, 2]):
        assert seen.pop(0) == [trainers[number].adapter for number in order]


def test_who_comes_later_gets_no_more_than_the_others(
    loop: StepLoop, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, newcomer = make(8), make(8, seed=2)
    tokens: list[tuple[int, int]] = []
    joined = threading.Event()
    watch(
        monkeypatch, lambda _: tokens.append((first.tokens_served, newcomer.tokens_served)) if joined.is_set() else None
    )
    futures = []

    def join(done: int, _: int) -> bool:
        if done == 20:
            futures.append(loop.train(newcomer, after(10)))
            joined.set()
        return done >= 30

    loop.train(first, join).result(WAIT)
    futures[0].result(WAIT)
    begin, (of_first, _) = tokens[0], tokens[9]
    assert of_first - begin[0] >= 3 * MICRO_STEP


def test_a_row_longer_than_a_micro_step_passes_by_itself(loop: StepLoop, make: Make) -> None:
    loop.call(lambda: setattr(loop, "_limit", ROW)).result(WAIT)
    found = alone(make(3, length=5 * ROW), loop, 2)
    other = StepLoop(loop.frozen, Machine(micro_batch_tokens=10 * MICRO_STEP))
    assert torch.allclose(found, alone(make(3, length=5 * ROW), other, 2), rtol=1e-9)
    other.close()


def test_an_error_in_a_call_is_the_caller_s(loop: StepLoop, make: Make) -> None:
    expected = alone(make(8), loop, 6)
    again = make(8)
    training = loop.train(again, after(6))
    with pytest.raises(ZeroDivisionError):
        loop.call(lambda: 1 / 0).result(WAIT)
    training.result(WAIT)
    assert torch.equal(again.adapter.flat, expected)


def test_what_fails_in_one_trial_leaves_the_others(loop: StepLoop, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(make(8), loop, 12)
    healthy, no_rows, no_step, unsure, diverging = (make(8, seed=seed) for seed in (1, 2, 3, 4, 5))

    def fail(*_: Any) -> Any:
        raise RuntimeError("its own")

    rows_of_step = no_rows._rows_of_step
    monkeypatch.setattr(no_rows, "_rows_of_step", lambda step: fail() if step == 2 else rows_of_step(step))
    monkeypatch.setattr(no_step._flat_optimizer, "step", fail)
    diverging.adapter.weights["model.layers.0.self_attn.q_proj"].b.fill_(1e308)
    others = [loop.train(no_rows, after(12)), loop.train(no_step, after(12)), loop.train(unsure, fail)]
    diverged = loop.train(diverging, after(12))
    loop.train(healthy, after(12)).result(WAIT)
    for future in others:
        with pytest.raises(RuntimeError, match="its own"):
            future.result(WAIT)
    with pytest.raises(DivergedError):
        diverged.result(WAIT)
    assert torch.allclose(healthy.adapter.flat, expected, rtol=1e-9)


def test_what_is_rehearsed_leaves_nothing_behind(loop: StepLoop, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(make(3), loop, 2).clone()
    passed: list[tuple[int, bool]] = []
    watch(monkeypatch, lambda batch: passed.append((batch.segments[0].adapter.rank, batch.dropout is None)))
    compile_kernels(loop)
    assert passed == [(rank, is_plain) for rank in (16, 32, 64) for is_plain in (False, True)]
    assert torch.equal(alone(make(3), loop, 2), expected)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no more"), ValueError("anything else")])
def test_a_rehearsal_that_memory_does_not_suffice_for_is_left_out(
    loop: StepLoop, make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: PackedBatch) -> None:
        raise error

    with monkeypatch.context() as patch:
        watch(patch, fail)
        if isinstance(error, torch.OutOfMemoryError):
            compile_kernels(loop)
        else:
            with pytest.raises(ValueError, match="anything else"):
                compile_kernels(loop)
    alone(make(3), loop, 1)


def test_closing_cuts_off_who_trains_and_refuses_who_comes(loop: StepLoop, make: Make) -> None:
    trainer = make(8)
    training = loop.train(trainer, after(10**9))
    loop.close()
    with pytest.raises(EngineClosedError, match="the engine has ended"):
        training.result(WAIT)
    with pytest.raises(EngineClosedError):
        loop.train(trainer, after(1))
    with pytest.raises(EngineClosedError):
        loop.call(lambda: None)
    loop.release(7)  # who clears up after himself is not refused


def test_a_loop_that_breaks_tells_everybody(loop: StepLoop, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(8)
    # What no trial can be blamed for, such as a GPU that is gone.
    monkeypatch.setattr(loop._micro_batcher, "check_finite", lambda: 1 / 0)
    with pytest.raises(EngineClosedError, match="ZeroDivisionError"):
        loop.train(trainer, after(3)).result(WAIT)
    with pytest.raises(EngineClosedError):
        loop.call(lambda: None)
