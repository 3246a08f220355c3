"""An engine whose GPU can't be relied on any more ends, and none of its trials is blamed for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.schema import Recipe
from tests.support.trained_trials import Workshop
from tests.trials.engine.model.test_decoder import model_of, rows_of_lengths
from trials.config import Machine
from trials.engine.engine import Engine
from trials.engine.kernels.async_scalars import AsyncScalars
from trials.engine.lora.adapter import Adapter
from trials.engine.memory.dry_run import DryRun
from trials.engine.memory.oom_history import TrialFootprint
from trials.engine.model.decoder import Decoder
from trials.engine.model.frozen_base import freeze
from trials.engine.optim.flat import FlatOptimizer
from trials.engine.runtime.adapter_trainer import AdapterTrainer
from trials.engine.runtime.gpu_errors import is_fatal_gpu_error
from trials.engine.runtime.step_loop import EngineClosedError, StepLoop
from trials.schedule import TrialLength

FAILED = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k, ... )`"
WAIT = 60


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(FAILED), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."), False),
        (RuntimeError("shapes differ"), False),
        (EngineClosedError(f"the engine has broken down: RuntimeError: {FAILED}"), False),
    ],
)
def test_what_a_breakdown_is(error: Exception, expected: bool) -> None:
    assert is_fatal_gpu_error(error) == expected


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    loop = StepLoop(freeze(model_of(), torch.float64), Machine(micro_batch_tokens=100))
    yield loop
    loop.close()


@pytest.fixture
def trainers(small_recipe: Recipe, loop: StepLoop) -> list[AdapterTrainer]:
    def trainer(seed: int) -> AdapterTrainer:
        config = small_recipe.trial_config({"learning_rate": 1e-2, "lora_rank": 4})
        adapter = Adapter(loop.frozen.targets, config.hyperparameters, seed, loop.frozen.final_norm)
        flat_optimizer = FlatOptimizer(adapter, config, TrialLength(50, 5000))
        return AdapterTrainer(adapter, flat_optimizer, 1.0, lambda step: rows_of_lengths([10] * 4, seed=step), 0)

    return [trainer(seed) for seed in (1, 2)]


def _fail(*_: Any) -> Any:
    raise RuntimeError(FAILED)


@pytest.mark.parametrize(
    ("owner", "name"), [(Decoder, "train"), (FlatOptimizer, "step"), (AdapterTrainer, "begin_step")]
)
def test_whoever_trains_is_cut_off(
    loop: StepLoop, trainers: list[AdapterTrainer], monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    monkeypatch.setattr(owner, name, _fail)
    futures = loop.call(lambda: [loop.train(each, lambda done, _: done >= 3) for each in trainers]).result(WAIT)
    for future in futures:
        with pytest.raises(EngineClosedError, match="the engine has broken down: RuntimeError: CUDA error"):
            future.result(WAIT)
    assert loop.has_ended


def _evaluates(loop: StepLoop, _: AdapterTrainer) -> None:
    loop.evaluate(None, rows_of_lengths([10], seed=0))


def _dry_runs(loop: StepLoop, trainer: AdapterTrainer) -> None:
    rows = rows_of_lengths([10], seed=0)
    loop.admit(1, TrialFootprint(0, 10, 1.0))
    loop.dry_run(DryRun(1, trainer.adapter, lambda: trainer._flat_optimizer, lambda _: (rows, rows)))


@pytest.mark.parametrize(
    ("owner", "name", "work"),
    [(Decoder, "losses", _evaluates), (AsyncScalars, "read", _evaluates), (Decoder, "train", _dry_runs)],
)
def test_whoever_waits_is_cut_off_with_those_who_train(
    loop: StepLoop,
    trainers: list[AdapterTrainer],
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    work: Callable[[StepLoop, AdapterTrainer], None],
) -> None:
    monkeypatch.setattr(owner, name, _fail)
    with pytest.raises(EngineClosedError):
        work(loop, trainers[0])
    with pytest.raises(EngineClosedError):
        loop.train(trainers[1], lambda done, _: done >= 3)


@pytest.mark.parametrize("name", ["train", "losses"])
def test_a_trial_has_no_ending_then(
    workshop: Workshop, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(Decoder, name, _fail)
    with pytest.raises(EngineClosedError):
        workshop.run("cut off", workshop.config(), 18, by=engine)
    assert engine.has_ended
    assert not (tmp_path / "cut off" / "ending.json").exists()


def test_a_trial_that_sees_it_in_its_own_thread_ends_the_engine(
    workshop: Workshop, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("trials.engine.runtime.trial_thread.write_checkpoint", _fail)
    with pytest.raises(EngineClosedError, match="EXECUTION_FAILED"):
        workshop.run("cut off", workshop.config(), 18, by=engine)
    assert engine.has_ended
    assert not (tmp_path / "cut off" / "ending.json").exists()
