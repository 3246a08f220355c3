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
from trials.engine.memory import manager as room_module
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
def room(frozen: FrozenDecoder, monkeypatch: pytest.MonkeyPatch) -> MemoryManager:
    """As on a GPU that is said to have 32 MiB for micro-steps and adapters."""
    room = MemoryManager(frozen, Machine(micro_batch_tokens=64))
    fixed = workspace_bytes(frozen.sizes, (ActivationPolicy.SAVE_ALL,) * 3, 0)
    monkeypatch.setattr(MemoryManager, "_allowed_bytes", fixed + 32 * MIB)
    room._rates = RATES
    return room


@pytest.fixture
def loop(frozen: FrozenDecoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepLoop]:
    """With such a room."""
    loop = StepLoop(frozen, Machine(micro_batch_tokens=64))
    fixed = workspace_bytes(frozen.sizes, (ActivationPolicy.SAVE_ALL,) * 3, 0)
    monkeypatch.setattr(MemoryManager, "_allowed_bytes", fixed + 32 * MIB)
    loop._room._rates = RATES
    yield loop
    loop.close()


def _guest(adapter_mib: int = 1) -> TrialFootprint:
    return TrialFootprint(adapter_mib * MIB, longest_row=50, step_tokens=1e6)


def test_on_a_gpu_less_memory_is_planned_with_from_then_on(room: MemoryManager) -> None:
    room.admit(1, _guest())
    before = room.predicted_bytes
    plans = [room.plan]
    while room.max_tokens > 50 and len(plans) < 40:
        room.on_oom(room.max_tokens)
        assert room.workspace.tokens == room.plan.tokens
        plans.append(room.plan)
    assert room.max_tokens <= 50
    assert room.predicted_bytes < before
    assert max(each.recomputed for each in plans) > 0
    knowing, limit = room.plan, room.max_tokens
    room.release(1)
    assert room.plan.tokens > 50  # with nobody there, it was never tried
    room.admit(2, _guest())
    assert (room.plan, room.max_tokens) == (knowing, limit)
    room.release(2)


def test_memory_that_no_plan_used_is_not_counted_on_either(room: MemoryManager) -> None:
    room.admit(1, TrialFootprint(MIB, longest_row=50, step_tokens=200))  # its steps take a part of what may be used
    before = room.predicted_bytes
    assert before < room._usable_bytes
    room.on_oom(room.max_tokens)
    assert room.predicted_bytes < before
    room.release(1)


def test_a_plan_whose_memory_is_not_there_is_made_smaller(room: MemoryManager, monkeypatch: pytest.MonkeyPatch) -> None:
    move = MemoryManager._move
    tried: list[int] = []

    def short(self: MemoryManager, best: MicroBatchPlan) -> None:
        tried.append(best.tokens)
        if best.tokens > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        move(self, best)

    monkeypatch.setattr(MemoryManager, "_move", short)
    room.admit(1, _guest())
    assert len(tried) > 1
    assert 50 <= room.plan.tokens == room.workspace.tokens <= 1000
    room.release(1)


def test_two_shortages_of_one_memory_take_it_away_once(room: MemoryManager) -> None:
    left = []
    for key, adapter_mib in ((1, 6), (2, 4)):  # seen on an H100: a large trial, a small one, and the large one again
        room.admit(key, _guest(adapter_mib))
        room.on_oom(room.max_tokens)
        left.append(room.predicted_bytes)
        room.release(key)
    room.admit(3, _guest(6))
    assert min(left) / 2 < room.predicted_bytes <= min(left)
    room.release(3)


def test_what_small_trials_fell_short_of_is_tried_for_a_large_one(room: MemoryManager) -> None:
    room.admit(1, _guest())
    while not room.is_least:
        room.on_oom(room.max_tokens)
    room.on_oom(1)  # not even that was there
    room.release(1)
    room.admit(2, _guest(8))
    assert room.plan.tokens >= 50
    while not room.is_least:  # down to its own smallest plan
        room.on_oom(room.max_tokens)
    room.release(2)


def test_memory_that_others_give_back_is_used_again(room: MemoryManager, monkeypatch: pytest.MonkeyPatch) -> None:
    available = iter([1000 * MIB] * 4 + [2000 * MIB] * 2 + [1000 * MIB] * 2)
    monkeypatch.setattr(room_module, "available_bytes", lambda: next(available))
    room.admit(1, _guest())
    before = room.plan
    room.on_oom(room.max_tokens)
    room.on_oom(room.max_tokens)
    short = room.plan
    assert short.tokens < before.tokens
    room.release(1)
    room.admit(1, _guest())  # the other process has gone
    assert room.plan == before
    room.release(1)
    room.admit(1, _guest())  # and is back
    assert room.plan == short
    room.release(1)


def test_what_was_learned_holds_beside_as_much_or_more() -> None:
    experience = OomHistory()
    experience.add_oom(OomEvent(100, 50, None))
    experience.add_oom(OomEvent(200, None, 700))
    experience.add_oom(OomEvent(200, None, 800))
    experience.add_oom(OomEvent(0, 1, None))
    experience.forget_after(3)
    assert [experience.most_tokens(other, 80, None) for other in (99, 100, 300)] == [80, 50, 50]
    assert [experience.usable_bytes(other, 900, 0, None) for other in (199, 200)] == [900, 700]
    assert [experience.usable_bytes(200, 900, least, None) for least in (700, 701, 801)] == [700, 800, 900]


def test_what_was_learned_goes_with_what_kept_the_memory() -> None:
    experience = OomHistory()
    experience.add_oom(OomEvent(0, 50, None, available_bytes=2**30))
    experience.add_oom(OomEvent(0, None, 2**30, available_bytes=2**30))
    given_back = (None, -1, 0, 2**20, 2**29)
    available = [None if more is None else 2**30 + more for more in given_back]
    assert [experience.most_tokens(0, 80, each) for each in available] == [50, 50, 50, 50, 80]
    expected = [2**30, 2**30, 2**30, 2**30 + 2**20, 2**30 + 2**29]
    assert [experience.usable_bytes(0, 2**40, 0, each) for each in available] == expected


def _workspace_of_at_most(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    real = ActivationBuffers.__init__

    def short(self: ActivationBuffers, frozen: FrozenDecoder, asked: int, keep: Sequence[ActivationPolicy]) -> None:
        if asked > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        real(self, frozen, asked, keep)

    monkeypatch.setattr(ActivationBuffers, "__init__", short)


def test_it_opens_beside_a_full_gpu(
    frozen: FrozenDecoder, room: MemoryManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "device_rates", lambda _: RATES)
    _workspace_of_at_most(monkeypatch, 700)
    opened = MemoryManager(frozen, Machine(gpu_memory_gib=room._allowed_bytes / 2**30))
    assert 1 <= opened.plan.tokens == opened.workspace.tokens <= 700
    opened.admit(1, _guest())
    opened.release(1)


def test_it_opens_on_a_cpu_that_has_less_memory_than_was_said(frozen: FrozenDecoder) -> None:
    opened = MemoryManager(frozen, Machine(micro_batch_tokens=10**14))  # really too much
    assert 1 <= opened.workspace.tokens < 10**14


def test_an_engine_for_which_there_is_no_memory_at_all_says_so(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    _workspace_of_at_most(monkeypatch, 0)
    with pytest.raises(ModelError, match="there isn't memory for the base model"):
        Engine(workshop.config().model, workshop.config().machine)


def test_rates_for_which_there_is_no_memory_are_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    def short() -> DeviceRates:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256 MiB.")

    monkeypatch.setattr(room_module, "measured_rates", short)
    found = room_module.device_rates(torch.device("cuda"))
    assert found is not None
    assert 100 < found.flops / found.bytes < 400  # an H100's and an RTX 4090's: 260 and 183


def test_trials_go_on_where_a_newcomer_left_no_room_for_a_moment(
    loop: StepLoop, small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, stepper = _adapter_and_stepper(loop, small_recipe)
    loop.admit(1, TrialFootprint(MIB, ROW, 1e6))
    trainee = AdapterTrainer(adapter, stepper, 1.0, lambda step: rows_of_lengths([ROW], seed=step), 0)
    loop.train(trainee, lambda done, _: done >= 1).result(WAIT)
    with monkeypatch.context() as patch:
        _workspace_of_at_most(patch, 0)
        with pytest.raises(torch.OutOfMemoryError):
            loop.admit(2, _guest(20))
    loop.train(trainee, lambda done, _: done >= 3).result(WAIT)


def _adapter_and_stepper(loop: StepLoop, recipe: Recipe) -> tuple[Adapter, FlatOptimizer]:
    config = recipe.trial_config({"learning_rate": 1e-3, "lora_rank": 4})
    adapter = Adapter(loop.frozen.targets, config.hyperparameters, 1, loop.frozen.final_norm)
    return adapter, FlatOptimizer(adapter, config, TrialLength(50, 5000))


def _short(monkeypatch: pytest.MonkeyPatch, loop: StepLoop, fits: list[bool]) -> list[MicroBatchPlan]:
    """Memory suffices as `fits` says, at last for nothing more; gives the plans of what was tried."""
    train, tried = Decoder.train, list[MicroBatchPlan]()

    def short(self: Decoder, batch: PackedBatch) -> torch.Tensor:
        tried.append(loop._room.plan)
        if fits and fits.pop(0):
            return train(self, batch)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(Decoder, "train", short)
    return tried


def test_a_single_row_is_tried_with_less_before_its_trial_is_given_up(
    loop: StepLoop, small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, stepper = _adapter_and_stepper(loop, small_recipe)
    loop.admit(1, TrialFootprint(MIB, ROW, 1e6))
    trainee = AdapterTrainer(adapter, stepper, 1.0, lambda step: rows_of_lengths([ROW], seed=step), 0)
    fits = [True, False, True, False, True]
    tried = _short(monkeypatch, loop, fits)
    loop.train(trainee, lambda done, _: done >= 3).result(WAIT)
    assert trainee.oom_tokens == [ROW, ROW]
    assert tried[0] == tried[1] != tried[2] == tried[3] != tried[4]
    with pytest.raises(torch.OutOfMemoryError):
        loop.train(trainee, lambda done, _: done >= 4).result(WAIT)
    assert tried[-1] == MicroBatchPlan(ROW, (ActivationPolicy.RECOMPUTE_ALL,) * 3)


def test_a_rehearsal_gives_nobody_up_before_the_smallest_plan_was_tried(
    loop: StepLoop, small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, stepper = _adapter_and_stepper(loop, small_recipe)
    rows = rows_of_lengths([ROW], seed=0)

    def longest_rows(_: int) -> tuple[Sequence[TokenizedRow], Sequence[TokenizedRow]]:
        return rows, rows

    loop.admit(1, TrialFootprint(MIB, ROW, 1e6))
    tried = _short(monkeypatch, loop, [])
    with pytest.raises(torch.OutOfMemoryError):
        loop.dry_run(DryRun(1, adapter, lambda: stepper, longest_rows))
    assert tried[0].tokens > ROW
    assert tried[-1] == MicroBatchPlan(ROW, (ActivationPolicy.RECOMPUTE_ALL,) * 3)
    assert loop._room.experience.ooms == 0


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
