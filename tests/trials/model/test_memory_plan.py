"""How micro-steps are cut out of memory, for sizes of real models, and what is really set aside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trials.engine.model.test_captured_passes import Recorder
from tests.trials.engine.model.test_decoder import model_of
from trials.config import Machine
from trials.engine.memory import manager as manager_module
from trials.engine.memory.manager import MemoryManager
from trials.engine.memory.oom_history import TrialFootprint
from trials.engine.model.activations import ActivationBuffers
from trials.engine.model.frozen_base import FrozenDecoder, freeze
from trials.model.activation_policy import ActivationPolicy
from trials.model.memory_plan import (
    CAPTURED_TOKENS,
    MOST_TOKENS,
    DeviceRates,
    MicroBatchPlan,
    ModelSizes,
    captured_bytes,
    memory_bytes,
    plan,
    seconds_per_token,
    workspace_bytes,
)
from trials.system.oom import is_out_of_memory

GIB = 2**30
MISTRAL = ModelSizes(32, hidden=4096, intermediate=14336, queries=4096, keys=1024, itemsize=2, is_quantized=True)
SMALL = ModelSizes(30, hidden=576, intermediate=1536, queries=576, keys=192, itemsize=2, is_quantized=True)
H100, RTX_4090 = DeviceRates(650e12, 2.5e12), DeviceRates(165e12, 0.9e12)
BASE = 4 * GIB


@pytest.mark.parametrize("rates", [H100, RTX_4090], ids=str)
@pytest.mark.parametrize("longest", [100, 2050, 8192])
def test_a_split_fits_holds_the_longest_row_and_is_no_slower_with_more_memory(rates: DeviceRates, longest: int) -> None:
    before = float("inf")
    for quarters in range(4 * 5, 4 * 80):
        allowed = quarters * GIB // 4
        found = plan(MISTRAL, rates, BASE, allowed, longest)
        if found is None:
            assert before == float("inf"), "it did fit into less"
            continue
        assert memory_bytes(MISTRAL, found, BASE) <= allowed
        assert longest <= found.tokens <= max(longest, MOST_TOKENS)
        assert 0 <= found.dense_layers <= MISTRAL.layers
        seconds = seconds_per_token(MISTRAL, rates, found)
        assert seconds <= before, quarters
        before = seconds
    assert before < float("inf")


def test_nothing_is_planned_that_is_too_small_for_a_row() -> None:
    least = BASE + workspace_bytes(MISTRAL, [ActivationPolicy.RECOMPUTE_ALL] * 32, 2050)
    found = plan(MISTRAL, H100, BASE, least, 2050)
    assert found == MicroBatchPlan(2050, (ActivationPolicy.RECOMPUTE_ALL,) * 32)
    assert plan(MISTRAL, H100, BASE, least - 1, 2050) is None
    assert plan(MISTRAL, H100, 2 * least, least, 1) is None


def test_only_want_of_memory_has_anything_computed_again() -> None:
    def recomputed(gib: float, sizes: ModelSizes = MISTRAL) -> int:
        found = plan(sizes, H100, BASE, int(gib * GIB), 2048)
        assert found is not None
        return found.recomputed

    assert recomputed(80) == 0
    assert recomputed(24, SMALL) == 0
    assert recomputed(8) == 32
    amounts = [recomputed(gib) for gib in (8, 10, 12, 16, 20, 24, 40, 80)]
    assert amounts == sorted(amounts, reverse=True)


def test_a_step_of_few_tokens_is_not_given_more() -> None:
    found = plan(MISTRAL, H100, BASE, 80 * GIB, 300, most_tokens=1248)
    assert found is not None
    assert found.tokens <= 1248
    assert found.dense_layers > 0


@pytest.fixture(scope="module")
def frozen() -> FrozenDecoder:
    return freeze(model_of().to(torch.float32), torch.float32)


@pytest.mark.parametrize(
    "keep",
    [
        (ActivationPolicy.SAVE_ALL,) * 3,
        (ActivationPolicy.RECOMPUTE_ALL,) * 3,
        (ActivationPolicy.RECOMPUTE_ALL, ActivationPolicy.RECOMPUTE_MLP, ActivationPolicy.SAVE_ALL),
    ],
    ids=lambda keep: keep[0].name,
)
def test_a_workspace_takes_what_was_predicted(frozen: FrozenDecoder, keep: tuple[ActivationPolicy, ...]) -> None:
    sizes, tokens = frozen.sizes, 1000
    buffers = ActivationBuffers(frozen, tokens, keep)
    # Beside it the prediction has logits and slack, which don't grow with tokens, and what exists for a moment.
    momentary = tokens * sizes.passing * sizes.itemsize
    weight = sizes.largest_weight * sizes.itemsize
    predicted = workspace_bytes(sizes, keep, tokens) - workspace_bytes(sizes, keep, 0) + weight - momentary
    assert _bytes_of(buffers) == predicted
    replaced = buffers.replaced(MicroBatchPlan(10, keep))
    assert _bytes_of(buffers) == 0
    assert _bytes_of(ActivationBuffers(frozen, 0, keep)) == 0
    assert _bytes_of(replaced) == weight + (predicted - weight) // 100


def test_memory_is_given_back_before_new_is_asked_for(room: MemoryManager, monkeypatch: pytest.MonkeyPatch) -> None:
    room.admit(1, TrialFootprint(2**20, longest_row=50, step_tokens=1e6))
    given_back_with: list[int] = []
    old, real = room.buffers, ActivationBuffers.__init__

    def asked(self: ActivationBuffers, *given: Any) -> None:
        assert given_back_with == [0]
        real(self, *given)

    monkeypatch.setattr(ActivationBuffers, "__init__", asked)
    monkeypatch.setattr(manager_module, "available_bytes", lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: given_back_with.append(_bytes_of(old)))
    room.on_oom(room.max_tokens)
    assert room.buffers is not old


def _bytes_of(buffers: ActivationBuffers) -> int:
    """Of everything that it holds, each piece of memory counted once."""
    memories = [buffers._scratch, *buffers._layers]
    tensors = [buffers._weight, *(value for one in memories for value in vars(one).values())]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in _tensors(tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors(values: list[object]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))


def _tokens_of(room: MemoryManager) -> tuple[int, tuple[ActivationPolicy, ...]]:
    assert room.buffers.tokens == room.plan.tokens
    assert room.buffers.keep == room.plan.keep
    return room.plan.tokens, room.plan.keep


def test_on_a_cpu_the_machine_says_how_much_and_the_longest_row_is_the_least(frozen: FrozenDecoder) -> None:
    room = MemoryManager(frozen, Machine(micro_batch_tokens=64))
    first = room.buffers
    room.admit(1, TrialFootprint(0, longest_row=50, step_tokens=100.0))
    assert room.buffers is first
    room.admit(2, TrialFootprint(0, longest_row=100, step_tokens=100.0))
    assert _tokens_of(room) == (100, (ActivationPolicy.SAVE_ALL,) * 3)
    room.release(2)
    room.release(1)
    assert room.buffers.tokens >= 64


def test_who_does_not_fit_leaves_the_room_as_it_was(frozen: FrozenDecoder) -> None:
    room = MemoryManager(frozen, Machine(micro_batch_tokens=64))
    room.admit(1, TrialFootprint(0, longest_row=50, step_tokens=100.0))
    with pytest.raises(RuntimeError) as error:
        room.admit(2, TrialFootprint(0, longest_row=10**12, step_tokens=100.0))  # really too much
    assert is_out_of_memory(error.value)
    assert _tokens_of(room) == (64, (ActivationPolicy.SAVE_ALL,) * 3)
    assert len(room.buffers.layer(2, 64).gate) == 64
    room.release(1)


@pytest.fixture
def room(frozen: FrozenDecoder, monkeypatch: pytest.MonkeyPatch) -> MemoryManager:
    """As on a GPU that has 32 MiB for micro-steps and adapters."""
    room = MemoryManager(frozen, Machine(micro_batch_tokens=64))
    fixed = workspace_bytes(frozen.sizes, (ActivationPolicy.SAVE_ALL,) * 3, 0)
    monkeypatch.setattr(MemoryManager, "_allowed_bytes", fixed + 32 * 2**20)
    room._rates = H100
    return room


def test_adapters_that_come_take_room_and_give_it_back(room: MemoryManager) -> None:
    room.admit(1, TrialFootprint(2**20, longest_row=50, step_tokens=1e6))
    alone = _tokens_of(room)
    assert alone == (MOST_TOKENS, (ActivationPolicy.SAVE_ALL,) * 3)
    room.admit(2, TrialFootprint(20 * 2**20, longest_row=50, step_tokens=1e6))
    tokens, keep = _tokens_of(room)
    assert tokens < MOST_TOKENS or ActivationPolicy.RECOMPUTE_ALL in keep
    assert memory_bytes(room._sizes, room.plan, room._other_bytes) <= room._allowed_bytes
    with pytest.raises(torch.OutOfMemoryError, match="a row of 50 tokens doesn't fit"):
        room.admit(3, TrialFootprint(12 * 2**20, longest_row=50, step_tokens=1e6))
    assert _tokens_of(room) == (tokens, keep)
    room.release(2)
    assert _tokens_of(room) == alone
    room.release(1)


def test_a_plan_for_captured_passes_is_one_for_all_trials_and_leaves_room_for_them(
    room: MemoryManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.capture = Recorder()
    held, allowed = captured_bytes(room._sizes), room._allowed_bytes
    monkeypatch.setattr(MemoryManager, "_allowed_bytes", allowed + held)
    room.admit(9, TrialFootprint(20 * 2**20, longest_row=50, step_tokens=500.0))
    assert memory_bytes(room._sizes, room.plan, room._other_bytes) + held == room.predicted_bytes <= allowed + held
    room.release(9)
    monkeypatch.setattr(MemoryManager, "_allowed_bytes", allowed + held + 100 * 2**20)
    plans = []
    for key in range(3):
        room.admit(key, TrialFootprint(2**20, longest_row=50, step_tokens=500.0))
        plans.append(room.plan)
    assert plans == [plans[0]] * 3
    assert plans[0].tokens == CAPTURED_TOKENS


def test_where_captured_passes_have_no_room_nothing_is_captured(room: MemoryManager) -> None:
    room.capture = Recorder()
    assert captured_bytes(room._sizes) > 32 * 2**20
    room.admit(1, TrialFootprint(2**20, longest_row=50, step_tokens=1e6))
    assert not room.capture.is_possible
    assert _tokens_of(room) == (MOST_TOKENS, (ActivationPolicy.SAVE_ALL,) * 3)


def test_micro_steps_are_no_larger_than_all_steps_together(room: MemoryManager) -> None:
    room.admit(1, TrialFootprint(0, longest_row=50, step_tokens=500.0))
    assert room._best().tokens == 600
    room.admit(2, TrialFootprint(0, longest_row=50, step_tokens=500.0))
    assert room._best().tokens == 1200
