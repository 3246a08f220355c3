"""Where memory ran out: what is planned from then on, beside whom, for how long, and who is given up for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from search_spaces.schema import Recipe
from tests.support.trained_trials import Workshop
from tests.trials.engine.model.test_decoder import model_of, rows_of_lengths
from trials.config import Machine
from trials.data.tokenization import TokenizedRow
from trials.engine.engine import Engine
from trials.engine.lora.adapter import Adapter
from trials.engine.memory import manager as manager_module
from trials.engine.memory.dry_run import DryRun
from trials.engine.memory.manager import MemoryManager
from trials.engine.memory.oom_history import OomEvent, OomHistory, TrialFootprint
from trials.engine.model.activations import ActivationBuffers
from trials.engine.model.decoder import Decoder
from trials.engine.model.frozen_base import FrozenDecoder, freeze
from trials.engine.model.packed_batch import PackedBatch
from trials.engine.optim.flat import FlatOptimizer
from trials.engine.runtime.adapter_trainer import AdapterTrainer
from trials.engine.runtime.step_loop import StepLoop
from trials.errors import ModelError
from trials.model.activation_policy import ActivationPolicy
from trials.model.memory_plan import DeviceRates, MicroBatchPlan, workspace_bytes
from trials.schedule import TrialLength

MIB = 2**20
RATES = DeviceRates(650e12, 2.5e12)
ROW = 20
"""Tokens."""
WAIT = 60


@pytest.fixture(scope="module")
def frozen() -> FrozenDecoder:
    return freeze(model_of().to(torch.float32), torch.float32)


@pytest.fixture
def manager(frozen: FrozenDecoder, monkeypatch: pytest.MonkeyPatch) -> MemoryManager:
    """As on a GPU that is said to have 32 MiB for micro-steps and adapters."""
    manager = MemoryManager(frozen, Machine(micro_batch_tokens=64))
    fixed = workspace_bytes(frozen.sizes, (ActivationPolicy.SAVE_ALL,) * 3, 0)
    monkeypatch.setattr(MemoryManager, "_allowed_bytes", fixed + 32 * MIB)
    manager._rates = RATES
    return manager


@pytest.fixture
def loop(frozen: FrozenDecoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepLoop]:
    """With such a room."""
    loop = StepLoop(frozen, Machine(micro_batch_tokens=64))
    fixed = workspace_bytes(frozen.sizes, (ActivationPolicy.SAVE_ALL,) * 3, 0)
    monkeypatch.setattr(MemoryManager, "_allowed_bytes", fixed + 32 * MIB)
    loop._manager._rates = RATES
    yield loop
    loop.close()


def _footprint(adapter_mib: int = 1) -> TrialFootprint:
    return TrialFootprint(adapter_mib * MIB, longest_row=50, step_tokens=1e6)


def test_on_a_gpu_less_memory_is_planned_with_from_then_on(manager: MemoryManager) -> None:
    manager.admit(1, _footprint())
    before = manager.predicted_bytes
    plans = [manager.plan]
    while manager.max_tokens > 50 and len(plans) < 40:
        manager.on_oom(manager.max_tokens)
        assert manager.buffers.tokens == manager.plan.tokens
        plans.append(manager.plan)
    assert manager.max_tokens <= 50
    assert manager.predicted_bytes < before
    assert max(each.recomputed for each in plans) > 0
    knowing, limit = manager.plan, manager.max_tokens
    manager.release(1)
    assert manager.plan.tokens > 50  # with nobody there, it was never tried
    manager.admit(2, _footprint())
    assert (manager.plan, manager.max_tokens) == (knowing, limit)
    manager.release(2)


def test_memory_that_no_plan_used_is_not_counted_on_either(manager: MemoryManager) -> None:
    manager.admit(1, TrialFootprint(MIB, longest_row=50, step_tokens=200))  # its steps take a part of what may be used
    before = manager.predicted_bytes
    assert before < manager._usable_bytes
    manager.on_oom(manager.max_tokens)
    assert manager.predicted_bytes < before
    manager.release(1)


def test_a_plan_whose_memory_is_not_there_is_made_smaller(
    manager: MemoryManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = MemoryManager._move
    tried: list[int] = []

    def short(self: MemoryManager, best: MicroBatchPlan) -> None:
        tried.append(best.tokens)
        if best.tokens > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        move(self, best)

    monkeypatch.setattr(MemoryManager, "_move", short)
    manager.admit(1, _footprint())
    assert len(tried) > 1
    assert 50 <= manager.plan.tokens == manager.buffers.tokens <= 1000
    manager.release(1)


def test_two_shortages_of_one_memory_take_it_away_once(manager: MemoryManager) -> None:
    left = []
    for key, adapter_mib in ((1, 6), (2, 4)):  # seen on an H100: a large trial, a small one, and the large one again
        manager.admit(key, _footprint(adapter_mib))
        manager.on_oom(manager.max_tokens)
        left.append(manager.predicted_bytes)
        manager.release(key)
    manager.admit(3, _footprint(6))
    assert min(left) / 2 < manager.predicted_bytes <= min(left)
    manager.release(3)


def test_what_small_trials_fell_short_of_is_tried_for_a_large_one(manager: MemoryManager) -> None:
    manager.admit(1, _footprint())
    while not manager.is_least:
        manager.on_oom(manager.max_tokens)
    manager.on_oom(1)  # not even that was there
    manager.release(1)
    manager.admit(2, _footprint(8))
    assert manager.plan.tokens >= 50
    while not manager.is_least:  # down to its own smallest plan
        manager.on_oom(manager.max_tokens)
    manager.release(2)


def test_memory_that_others_give_back_is_used_again(manager: MemoryManager, monkeypatch: pytest.MonkeyPatch) -> None:
    available = iter([1000 * MIB] * 4 + [2000 * MIB] * 2 + [1000 * MIB] * 2)
    monkeypatch.setattr(manager_module, "available_bytes", lambda: next(available))
    manager.admit(1, _footprint())
    before = manager.plan
    manager.on_oom(manager.max_tokens)
    manager.on_oom(manager.max_tokens)
    short = manager.plan
    assert short.tokens < before.tokens
    manager.release(1)
    manager.admit(1, _footprint())  # the other process has gone
    assert manager.plan == before
    manager.release(1)
    manager.admit(1, _footprint())  # and is back
    assert manager.plan == short
    manager.release(1)


def test_what_was_learned_holds_beside_as_much_or_more() -> None:
    oom_history = OomHistory()
    oom_history.add_oom(OomEvent(100, 50, None))
    oom_history.add_oom(OomEvent(200, None, 700))
    oom_history.add_oom(OomEvent(200, None, 800))
    oom_history.add_oom(OomEvent(0, 1, None))
    oom_history.forget_after(3)
    assert [oom_history.most_tokens(other, 80, None) for other in (99, 100, 300)] == [80, 50, 50]
    assert [oom_history.usable_bytes(other, 900, 0, None) for other in (199, 200)] == [900, 700]
    assert [oom_history.usable_bytes(200, 900, least, None) for least in (700, 701, 801)] == [700, 800, 900]


def test_what_was_learned_goes_with_what_kept_the_memory() -> None:
    oom_history = OomHistory()
    oom_history.add_oom(OomEvent(0, 50, None, available_bytes=2**30))
    oom_history.add_oom(OomEvent(0, None, 2**30, available_bytes=2**30))
    given_back = (None, -1, 0, 2**20, 2**29)
    available = [None if more is None else 2**30 + more for more in given_back]
    assert [oom_history.most_tokens(0, 80, each) for each in available] == [50, 50, 50, 50, 80]
    expected = [2**30, 2**30, 2**30, 2**30 + 2**20, 2**30 + 2**29]
    assert [oom_history.usable_bytes(0, 2**40, 0, each) for each in available] == expected


def _buffers_of_at_most(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    real = ActivationBuffers.__init__

    def short(self: ActivationBuffers, frozen: FrozenDecoder, asked: int, keep: Sequence[ActivationPolicy]) -> None:
        if asked > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        real(self, frozen, asked, keep)

    monkeypatch.setattr(ActivationBuffers, "__init__", short)


def test_it_opens_beside_a_full_gpu(
    frozen: FrozenDecoder, manager: MemoryManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "device_rates", lambda _: RATES)
    _buffers_of_at_most(monkeypatch, 700)
    opened = MemoryManager(frozen, Machine(gpu_memory_gib=manager._allowed_bytes / 2**30))
    assert 1 <= opened.plan.tokens == opened.buffers.tokens <= 700
    opened.admit(1, _footprint())
    opened.release(1)


def test_it_opens_on_a_cpu_that_has_less_memory_than_was_said(frozen: FrozenDecoder) -> None:
    opened = MemoryManager(frozen, Machine(micro_batch_tokens=10**14))  # really too much
    assert 1 <= opened.buffers.tokens < 10**14


def test_an_engine_for_which_there_is_no_memory_at_all_says_so(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    _buffers_of_at_most(monkeypatch, 0)
    with pytest.raises(ModelError, match="there isn't memory for the base model"):
        Engine(workshop.config().model, workshop.config().machine)


def test_rates_for_which_there_is_no_memory_are_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    def short() -> DeviceRates:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256 MiB.")

    monkeypatch.setattr(manager_module, "measured_rates", short)
    found = manager_module.device_rates(torch.device("cuda"))
    assert found is not None
    assert 100 < found.flops / found.bytes < 400  # an H100's and an RTX 4090's: 260 and 183


def test_trials_go_on_where_a_newcomer_left_no_room_for_a_moment(
    loop: StepLoop, small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, flat_optimizer = _adapter_and_optimizer(loop, small_recipe)
    loop.admit(1, TrialFootprint(MIB, ROW, 1e6))
    trainer = AdapterTrainer(adapter, flat_optimizer, 1.0, lambda step: rows_of_lengths([ROW], seed=step), 0)
    loop.train(trainer, lambda done, _: done >= 1).result(WAIT)
    with monkeypatch.context() as patch:
        _buffers_of_at_most(patch, 0)
        with pytest.raises(torch.OutOfMemoryError):
            loop.admit(2, _footprint(20))
    loop.train(trainer, lambda done, _: done >= 3).result(WAIT)


def _adapter_and_optimizer(loop: StepLoop, recipe: Recipe) -> tuple[Adapter, FlatOptimizer]:
    config = recipe.trial_config({"learning_rate": 1e-3, "lora_rank": 4})
    adapter = Adapter(loop.frozen.targets, config.hyperparameters, 1, loop.frozen.final_norm)
    return adapter, FlatOptimizer(adapter, config, TrialLength(50, 5000))


def _short(monkeypatch: pytest.MonkeyPatch, loop: StepLoop, fits: list[bool]) -> list[MicroBatchPlan]:
    """Memory suffices as `fits` says, at last for nothing more; gives the plans of what was tried."""
    train, tried = Decoder.train, list[MicroBatchPlan]()

    def short(self: Decoder, batch: PackedBatch) -> torch.Tensor:
        tried.append(loop._manager.plan)
        if fits and fits.pop(0):
            return train(self, batch)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(Decoder, "train", short)
    return tried


def test_a_single_row_is_tried_with_less_before_its_trial_is_given_up(
    loop: StepLoop, small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, flat_optimizer = _adapter_and_optimizer(loop, small_recipe)
    loop.admit(1, TrialFootprint(MIB, ROW, 1e6))
    trainer = AdapterTrainer(adapter, flat_optimizer, 1.0, lambda step: rows_of_lengths([ROW], seed=step), 0)
    fits = [True, False, True, False, True]
    tried = _short(monkeypatch, loop, fits)
    loop.train(trainer, lambda done, _: done >= 3).result(WAIT)
    assert trainer.oom_tokens == [ROW, ROW]
    assert tried[0] == tried[1] != tried[2] == tried[3] != tried[4]
    with pytest.raises(torch.OutOfMemoryError):
        loop.train(trainer, lambda done, _: done >= 4).result(WAIT)
    assert tried[-1] == MicroBatchPlan(ROW, (ActivationPolicy.RECOMPUTE_ALL,) * 3)


def test_a_rehearsal_gives_nobody_up_before_the_smallest_plan_was_tried(
    loop: StepLoop, small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, flat_optimizer = _adapter_and_optimizer(loop, small_recipe)
    rows = rows_of_lengths([ROW], seed=0)

    def longest_rows(_: int) -> tuple[Sequence[TokenizedRow], Sequence[TokenizedRow]]:
        return rows, rows

    loop.admit(1, TrialFootprint(MIB, ROW, 1e6))
    tried = _short(monkeypatch, loop, [])
    with pytest.raises(torch.OutOfMemoryError):
        loop.dry_run(DryRun(1, adapter, lambda: flat_optimizer, longest_rows))
    assert tried[0].tokens > ROW
    assert tried[-1] == MicroBatchPlan(ROW, (ActivationPolicy.RECOMPUTE_ALL,) * 3)
    assert loop._manager.oom_history.ooms == 0


def test_an_evaluation_of_a_single_row_is_tried_with_less(loop: StepLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of_lengths([ROW], seed=0)
    loop.admit(1, TrialFootprint(MIB, ROW, 1e6))
    expected = loop.evaluate(None, rows).mean
    losses, fits = Decoder.losses, [False, False, True]

    def short(self: Decoder, batch: PackedBatch) -> torch.Tensor:
        if fits.pop(0):
            return losses(self, batch)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(Decoder, "losses", short)
    assert loop.evaluate(None, rows).mean == pytest.approx(expected)
    assert fits == []
