"""One trial, really trained: what it leaves on disk, how it ends, and what its loss depends on."""

from __future__ import annotations

import gc
import itertools
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModelForCausalLM
from transformers import PreTrainedTokenizerBase

from search_spaces.schema import Recipe
from tests.support.small_splits import first_rows
from trials.config import Machine, TrialConfig
from trials.data.dataset import TrialData
from trials.errors import ModelError
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState
from trials.system.oom import is_out_of_memory
from trials.system.torch_setup import use_threads
from trials.training.training_run import Decision, TrainingRun
from trials.trl.backend import TrlBackend


@dataclass(frozen=True)
class Trained:
    """What became of a trial."""

    ending: Ending | None
    record: TrialRecord

    @property
    def losses(self) -> list[float]:
        return [point.eval_loss for point in self.record.points]


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def train(
    small_recipe: Recipe,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Train:
    """Runs a trial of the demo made small; keywords replace hyperparameters and settings."""
    use_threads(small_recipe.machine)
    few = _few(small_data, 64)

    def of(
        on_eval: Callable[[EvalPoint], Decision] = lambda _: Decision.CONTINUE,
        *,
        folder: TrialDir | None = None,
        stop_at: float = math.inf,
        data: TrialData = few,
        base_eval_loss: float | None = 9.0,  # known already: no trial has to evaluate the base
        machine: Machine = small_recipe.machine,
        evaluation: dict[str, Any] | None = None,
        **hyperparameters: Any,
    ) -> Trained:
        usually = {"learning_rate": 3e-4, "train_tokens": 2000, "lora_dropout": 0.0}
        config = small_recipe.trial_config({**usually, **hyperparameters})
        judged = config.evaluation.model_copy(update=evaluation or {})
        update = {"base_eval_loss": base_eval_loss, "machine": machine, "evaluation": judged}
        config = config.model_copy(update=update)
        folder = folder or TrialDir(tmp_path_factory.mktemp("trial") / "0001")
        folder.begin(config, Origin.SINGLE, "demo")
        ending = TrlBackend().run(TrainingRun(config, data, tokenizer, folder, on_eval, stop_at))
        return Trained(ending, read_trial(folder.path))

    return of


def _few(data: TrialData, rows: int) -> TrialData:
    return replace(data, train=first_rows(data.train, rows))


@pytest.fixture(scope="module")
def usual(train: Train) -> Trained:
    """What others are compared with: no dropout, three evaluations."""
    trained = train()
    assert len(trained.losses) == 3
    return trained


def test_a_trial_leaves_everything_on_disk(small_trial: TrialRecord, small_config: TrialConfig) -> None:
    folder = small_trial.folder
    assert small_trial.config == small_config
    assert small_trial.ending == Ending(TrialState.FINISHED, "trained for all its 7 steps")
    assert small_trial.has_adapter
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size > 1000
    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == small_config.hyperparameters.lora_rank
    assert adapter["base_model_name_or_path"] == small_config.model.name
    assert [path.name for path in folder.rglob("events.out.tfevents*")]
    assert not (folder / "adapter.new").exists()
    assert not (folder / "adapter.old").exists()


def test_it_is_evaluated_as_often_as_asked_and_at_its_end(small_trial: TrialRecord) -> None:
    points = small_trial.points
    assert len(points) == small_trial.config.evaluation.evaluations
    assert points[-1].step == 7
    assert points[-1].tokens_seen == pytest.approx(small_trial.config.hyperparameters.train_tokens, rel=0.1)
    assert all(point.tokens_per_second and point.train_loss for point in points)
    for before, after in itertools.pairwise(points):
        assert (before.step, before.tokens_seen, before.seconds) < (after.step, after.tokens_seen, after.seconds)


def test_it_learns(
    small_trial: TrialRecord,
    small_data: TrialData,
    small_config: TrialConfig,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    folder = TrialDir(tmp_path / "0000")
    folder.begin(small_config, Origin.BASE, "base")
    heard: list[EvalPoint] = []
    run = TrainingRun(
        *(small_config, small_data, tokenizer, folder), on_eval=lambda point: heard.append(point) or Decision.CONTINUE
    )
    ending = TrlBackend().evaluate_base(run)
    base = read_trial(folder.path)
    assert ending.kind is TrialState.FINISHED
    assert base.ending == ending
    assert list(base.points) == heard
    assert not base.has_adapter
    assert (heard[0].step, heard[0].tokens_seen) == (0, 0)
    rows = base.row_losses()
    assert rows is not None
    assert rows.mean == pytest.approx(heard[0].eval_loss)
    assert small_trial.best_eval_loss is not None
    assert small_trial.best_eval_loss < 0.9 * heard[0].eval_loss


def test_best_eval_loss_is_a_running_minimum(train: Train) -> None:
    # A rate that overshoots: the loss goes up again.
    trained = train(learning_rate=0.05, scheduler="constant", evaluation={"evaluations": 5, "divergence_factor": 99.0})
    losses = trained.losses
    assert [point.best_eval_loss for point in trained.record.points] == [
        min(losses[: n + 1]) for n in range(len(losses))
    ]
    rows = trained.record.row_losses()
    assert rows is not None
    assert rows.mean == pytest.approx(min(losses))


def test_the_same_seed_gives_the_same_losses(train: Train, small_data: TrialData, small_trial: TrialRecord) -> None:
    config = small_trial.config
    again = train(data=small_data, base_eval_loss=None, **config.hyperparameters.model_dump())
    assert again.losses == pytest.approx([point.eval_loss for point in small_trial.points], abs=5e-5)


@pytest.mark.parametrize(
    "machine",
    [{"micro_batch_tokens": 300}, {"micro_batch_tokens": 1}, {"gradient_checkpointing": True}],
    ids=lambda machine: next(iter(machine)),
)
def test_how_a_machine_runs_it_does_not_change_the_loss(train: Train, usual: Trained, machine: dict[str, Any]) -> None:
    # Rounding makes 2e-5 here (Adam enlarges it with the learning rate); unweighted micro-batches would make 1e-3.
    other = train(machine=Machine(cpu_threads=1, **machine))
    assert other.losses == pytest.approx(usual.losses, abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"lora_rank": 4},
        {"lora_alpha": 64},
        {"lora_dropout": 0.5},
        {"target_modules": ["q_proj"]},
        {"use_rslora": True},
        {"use_dora": True},
        {"loraplus_ratio": 16.0},
        {"neftune_noise_alpha": 10.0},
        {"scheduler": "constant"},
        {"warmup_fraction": 0.9},
        {"weight_decay": 1.0},
        {"max_grad_norm": 1e-9},
        {"effective_batch": 2},
        {"adapter_average": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_hyperparameter_changes_the_loss(train: Train, usual: Trained, change: dict[str, Any]) -> None:
    other = train(lambda _: Decision.STOP, **change)  # one evaluation will do
    assert other.losses[0] == min(other.losses)
    assert abs(usual.losses[0] - other.losses[0]) > 1e-6


def test_epochs_see_every_row_so_often(train: Train, small_data: TrialData) -> None:
    data = _few(small_data, 8)
    trained = train(data=data, epochs=2.0, train_tokens=None)
    assert trained.record.points[-1].step == 4
    assert trained.record.points[-1].tokens_seen == 2 * data.train.tokens


def test_stop_ends_the_trial_and_leaves_the_ending_to_who_said_it(train: Train) -> None:
    trained = train(lambda _: Decision.STOP)
    assert trained.ending is None
    assert trained.record.ending is None
    assert len(trained.record.points) == 1
    assert trained.record.has_adapter


def test_when_time_is_over_it_is_evaluated_and_pruned(train: Train) -> None:
    trained = train(stop_at=time.time() - 1)
    assert trained.record.ending == Ending(TrialState.OUT_OF_TIME, "the time for training was over")
    assert [point.step for point in trained.record.points] == [1]
    assert trained.record.has_adapter


def test_a_loss_far_above_the_base_is_divergence(train: Train) -> None:
    trained = train(base_eval_loss=0.1)
    assert trained.record.ending is not None
    assert trained.record.ending.kind is TrialState.DIVERGED
    assert "is above 2 times the base model's 0.1000" in trained.record.ending.reason
    assert len(trained.record.points) == 1


def test_divergence_is_said_even_where_the_callback_would_have_stopped_the_trial(train: Train) -> None:
    trained = train(lambda _: Decision.STOP, base_eval_loss=0.1)
    assert trained.record.ending is not None
    assert trained.record.ending.kind is TrialState.DIVERGED


def test_the_base_is_evaluated_where_its_loss_is_not_known(train: Train) -> None:
    trained = train(learning_rate=1.0, base_eval_loss=None, train_tokens=800)
    assert trained.record.ending is not None
    assert trained.record.ending.kind is TrialState.DIVERGED


def test_a_loss_that_is_no_number_is_divergence_and_never_written(train: Train) -> None:
    heard: list[EvalPoint] = []
    # After one step queries times keys overflow.
    huge = {"learning_rate": 1.0, "loraplus_ratio": 1000.0, "lora_alpha": 1e18}
    trained = train(lambda point: heard.append(point) or Decision.CONTINUE, **huge)
    assert trained.record.ending is not None
    assert trained.record.ending.kind is TrialState.DIVERGED
    assert trained.record.ending.reason == "the loss is nan"
    assert heard == list(trained.record.points)
    assert all(math.isfinite(loss) for loss in trained.losses)
    assert not [file for file in trained.record.folder.glob("*.json*") if "NaN" in file.read_text()]


def test_patience(train: Train) -> None:
    impatient = {"evaluations": 4, "patience": 1, "min_improvement": 5.0}
    trained = train(evaluation=impatient, scheduler="constant")
    assert trained.record.ending is not None
    assert trained.record.ending.kind is TrialState.EARLY_STOPPED
    assert len(trained.record.points) == 2


def _take_all_memory(_: EvalPoint) -> Decision:
    torch.empty(2**55)
    return Decision.CONTINUE


def _gpu_is_full(_: EvalPoint) -> Decision:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nand more")


@pytest.mark.parametrize("on_eval", [_take_all_memory, _gpu_is_full])
def test_out_of_memory_is_an_ending(train: Train, on_eval: Callable[[EvalPoint], Decision]) -> None:
    # There is no way to split batches that would take less.
    trained = train(on_eval, machine=Machine(cpu_threads=1, micro_batch_rows=1, gradient_checkpointing=True))
    assert trained.record.ending == trained.ending
    assert trained.ending is not None
    assert trained.ending.kind is TrialState.OUT_OF_MEMORY
    assert "\n" not in trained.ending.reason
    assert trained.record.has_adapter


def test_any_other_error_is_recorded_and_raised(train: Train, tmp_path: Path) -> None:
    def broken(_: EvalPoint) -> Decision:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        train(broken, folder=TrialDir(tmp_path / "0001"))
    assert read_trial(tmp_path / "0001").ending == Ending(TrialState.FAILED, "ZeroDivisionError: a bug")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("shapes differ"), False),
        (MemoryError(), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"), False),
    ],
)
def test_what_out_of_memory_is(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_threads_are_limited_on_a_cpu() -> None:
    before = torch.get_num_threads()
    use_threads(Machine(cpu_threads=2))
    assert torch.get_num_threads() == 2
    use_threads(Machine(cpu_threads=None))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_base_that_cannot_be_evaluated_says_why(
    small_config: TrialConfig, small_data: TrialData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = small_config.model.model_copy(update={"name": str(tmp_path / "nowhere")})
    folder = TrialDir(tmp_path / "0000")
    folder.begin(small_config, Origin.BASE, "base")
    config = small_config.model_copy(update={"model": model})
    with pytest.raises(ModelError, match="no model in"):
        TrlBackend().evaluate_base(TrainingRun(config, small_data, tokenizer, folder, lambda _: Decision.CONTINUE))
    ending = read_trial(folder.path).ending
    assert ending is not None
    assert ending.kind is TrialState.FAILED
    assert "ModelError: no model in" in ending.reason


def models_in_memory() -> set[int]:
    return {id(thing) for thing in gc.get_objects() if type(thing) is PeftModelForCausalLM}


def test_the_trial_before_leaves_no_model_in_memory(
    small_config: TrialConfig, small_data: TrialData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    backend, others, found = TrlBackend(), models_in_memory(), []
    hp = small_config.hyperparameters.model_copy(update={"train_tokens": 400})
    config = small_config.model_copy(update={"hyperparameters": hp, "base_eval_loss": 9.0})
    gc.disable()  # the collector must not come by chance
    try:
        for number in range(4):
            # One ends as it should, one by an error, one is stopped.
            def on_eval(_: EvalPoint, number: int = number) -> Decision:
                found.append(len(models_in_memory() - others))
                if number == 1:
                    raise ValueError("an error")
                return Decision.STOP if number == 2 else Decision.CONTINUE

            folder = TrialDir(tmp_path / str(number))
            folder.begin(config, Origin.SINGLE, "demo")
            with suppress(ValueError):
                backend.run(TrainingRun(config, _few(small_data, 8), tokenizer, folder, on_eval))
    finally:
        gc.enable()
    assert set(found) == {1}
