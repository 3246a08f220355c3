"""A trial that was cut off and goes on from a checkpoint, against the same trial that ran through."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event, SessionLog
from transformers import PreTrainedTokenizerBase

from search_spaces.schema import Recipe
from tests.support.trained_trials import CHECKPOINT, STEPS, TOLERANCE, Workshop, step_losses
from trials import schedule
from trials.data.dataset import TrialData
from trials.records.checkpoints import whole_checkpoints
from trials.records.trial_dir import EvalPoint, TrialRecord, read_trial
from trials.state import TrialState
from trials.training.training_run import Decision

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Usual:
    """The usual trial on 64 rows: run through, and another as it was cut off and when it had gone on."""

    straight: TrialRecord
    cut_off: TrialRecord
    resumed: TrialRecord


@pytest.fixture(scope="module")
def usual(
    small_recipe: Recipe,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Usual:
    """Trained once for all who look at it. Read it, don't write to its folders."""
    workshop = Workshop(small_recipe, small_data, tokenizer, tmp_path_factory.mktemp("usual"))
    straight = workshop.run("straight", workshop.config(), 64)
    cut_off = workshop.cut_off(workshop.config(), 64)
    return Usual(straight, cut_off, workshop.resume(cut_off, 64))


def _assert_equal(resumed: TrialRecord, straight: TrialRecord) -> None:
    assert [(point.step, point.tokens_seen) for point in resumed.points] == [
        (point.step, point.tokens_seen) for point in straight.points
    ]
    for name in ("eval_loss", "best_eval_loss", "train_loss"):
        found, expected = ([getattr(point, name) or 0.0 for point in record.points] for record in (resumed, straight))
        assert found == pytest.approx(expected, abs=TOLERANCE, rel=0), name
    assert step_losses(resumed) == pytest.approx(step_losses(straight), abs=TOLERANCE, rel=0)
    assert resumed.ending == straight.ending


@pytest.mark.parametrize(
    ("rows", "change"),
    [
        (24, {}),  # the checkpoint is at the end of the first epoch
        (20, {}),  # and here in the second, which ends with a batch of one step
        (18, {"machine": {"micro_batch_rows": 1}}),
        (64, {"optimizer": "paged_adamw_8bit", "lora_rank": 64}),
        (64, {"loraplus_ratio": 4.0, "weight_decay": 0.1}),
        (64, {"target_modules": ["q_proj", "lm_head"], "optimizer": "paged_adamw_32bit"}),
        (64, {"use_dora": True, "neftune_noise_alpha": 5.0}),
        (18, {"use_dora": True, "target_modules": ["q_proj", "lm_head"], "adapter_average": 0.3}),
    ],
    ids=str,
)
def test_a_resumed_trial_gives_the_losses_of_one_that_ran_through(
    workshop: Workshop, rows: int, change: dict[str, Any]
) -> None:
    config = workshop.config(**change)
    straight = workshop.run("straight", config, rows)
    _assert_ran_through(straight)
    resumed = workshop.resume(workshop.cut_off(config, rows), rows)
    _assert_equal(resumed, straight)


def test_the_usual_one_gives_them_too(usual: Usual) -> None:
    _assert_ran_through(usual.straight)
    _assert_equal(usual.resumed, usual.straight)


def _assert_ran_through(straight: TrialRecord) -> None:
    assert straight.ending is not None
    assert straight.ending.kind is TrialState.FINISHED
    assert len(step_losses(straight)) == STEPS


def test_train_losses_between_two_log_lines_are_not_lost(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "LOGGED_STEPS", 3)  # every fourth step: the checkpoint is between two
    config = workshop.config()
    straight = workshop.run("straight", config, 64)
    assert len(step_losses(straight)) == 3
    _assert_equal(workshop.resume(workshop.cut_off(config, 64), 64), straight)


def test_patience_and_the_best_so_far_go_on_from_what_they_were(workshop: Workshop, small_recipe: Recipe) -> None:
    # A rate at which the first evaluation stays the best, of the whole model.
    config = workshop.config(learning_rate=0.01, scheduler="constant")
    whole = config.model.model_copy(update={"name": small_recipe.model.name})
    config = config.model_copy(update={"model": whole})
    judged = config.evaluation.model_copy(update={"patience": 4, "divergence_factor": 99.0})
    config = config.model_copy(update={"evaluation": judged})
    straight = workshop.run("straight", config, 64)
    resumed = workshop.resume(workshop.cut_off(config, 64), 64)
    assert straight.ending is not None
    assert straight.ending.kind is TrialState.EARLY_STOPPED
    assert resumed.ending == straight.ending
    first = straight.points[0]
    assert [point.best_eval_loss for point in resumed.points] == [first.eval_loss] * len(straight.points)
    assert json.loads((resumed.adapter / "point.json").read_text())["step"] == first.step


def test_a_finished_trial_goes_back_and_does_the_same_again(workshop: Workshop) -> None:
    config = workshop.config(machine={"checkpoint_every_rows": 4 * 3})
    straight = workshop.run("straight", config, 64)
    resumed = workshop.resume(straight, 64, step=3)
    _assert_equal(resumed, straight)
    aside = read_trial(straight.folder / "before-3")
    assert (aside.points, aside.ending) == (straight.points, straight.ending)
    assert step_losses(aside) == step_losses(straight)
    assert resumed.points[:1] == straight.points[:1]
    assert resumed.has_adapter


def test_time_goes_on_from_what_it_was(usual: Usual) -> None:
    resumed = usual.resumed
    before = [point for point in usual.cut_off.points if point.step <= CHECKPOINT]
    assert list(resumed.points[: len(before)]) == before
    seconds = [point.seconds for point in resumed.points]
    assert seconds == sorted(seconds)
    trained = [point.tokens_seen / (point.tokens_per_second or 0.0) for point in resumed.points]
    assert trained == sorted(trained)


def test_a_trial_that_died_before_its_last_word_says_it(workshop: Workshop, usual: Usual) -> None:
    straight = read_trial(Path(shutil.copytree(usual.straight.folder, workshop.path / "straight")))
    (straight.folder / "ending.json").unlink()
    assert workshop.resume(read_trial(straight.folder), 64) == straight


def test_a_trial_that_is_stopped_leaves_no_checkpoint_behind(workshop: Workshop) -> None:
    # Who stops a trial clears up after it, and may have done so before it hears of it.
    def stop(point: EvalPoint) -> Decision:
        return Decision.STOP if point.step == CHECKPOINT else Decision.CONTINUE

    stopped = workshop.run("stopped", workshop.config(), 64, stop)
    assert stopped.points[-1].step == CHECKPOINT
    assert not (stopped.folder / "checkpoints").exists()


def test_only_the_newest_are_kept(workshop: Workshop) -> None:
    config = workshop.config(machine={"checkpoint_every_rows": 4 * 2, "keep_checkpoints": 2})
    record = workshop.run("trial", config, 64)
    assert [checkpoint.step for checkpoint in whole_checkpoints(record.folder)] == [10, 12]


def test_without_the_wish_there_are_none(small_trial: TrialRecord) -> None:
    assert not (small_trial.folder / "checkpoints").exists()


def test_a_checkpoint_holds_the_adapter_in_float32_and_nothing_of_the_base(workshop: Workshop) -> None:
    # At rank 64 every matrix has 4,096 values and more: smaller ones an 8-bit optimizer keeps in 32 bits.
    values = {"target_modules": ["q_proj", "lm_head"], "optimizer": "paged_adamw_8bit", "lora_rank": 64}
    record = workshop.run("trial", workshop.config(**values), 64, _stop_after(CHECKPOINT))
    (checkpoint,) = whole_checkpoints(record.folder)
    weights = load_file(checkpoint.path / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in weights} == {"lora_A", "lora_B"}
    assert any("lm_head" in name for name in weights)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    state = torch.load(checkpoint.path / "optimizer.pt", weights_only=True)["state"]
    kinds = {
        tensor["state1"].dtype for entry in state.values() for tensor in entry.values() if isinstance(tensor, dict)
    }
    assert kinds == {torch.uint8}
    assert not (record.folder / "README.md").exists()


def _stop_after(step: int) -> Callable[[EvalPoint], Decision]:
    return lambda point: Decision.STOP if point.step > step else Decision.CONTINUE


def test_tensorboard_hides_what_is_trained_again(usual: Usual) -> None:
    restarts = [
        event.step
        for file in usual.resumed.folder.glob("tensorboard/events*")
        for event in events(file)
        if event.session_log.status == SessionLog.START
    ]
    assert restarts == [CHECKPOINT + 1]


def events(file: Path) -> Iterator[Event]:
    """Each is framed by its length, eight bytes, and checksums of four."""
    content = file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
