"""Trials whose length is raised, against those that were as long from the beginning, in the engine and under TRL."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.trained_trials import STEPS, TOLERANCE, TRL, Workshop
from trials.config import TrialConfig
from trials.engine.engine import Engine
from trials.records.checkpoints import whole_checkpoints
from trials.records.extension import extend
from trials.records.trial_dir import EvalPoint, Origin, TrialRecord, read_trial
from trials.state import TrialState
from trials.training.training_run import Decision, TrialBackend

pytestmark = pytest.mark.slow

ROWS = 18
"""An epoch has five steps and ends with one of two rows; half a trial ends in the second, a whole one in the third."""
PAUSING = {"checkpoint_evaluations": True, "checkpoint_every_rows": None, "keep_checkpoints": 1}
ROUNDING = 2e-5
"""Between the engine and TRL."""
CHANGES: list[dict[str, Any]] = [
    {"adapter_average": 0.2, "warmup_fraction": 0.3},
    {"optimizer": "paged_adamw_8bit", "lora_rank": 64, "weight_decay": 0.1},
]


def _config(workshop: Workshop, steps: int, evaluations: int, **change: Any) -> TrialConfig:
    config = workshop.config(PAUSING, scheduler="inverse_sqrt", rows_seen=4 * steps, **change)
    evaluation = config.evaluation.model_copy(update={"evaluations": evaluations})
    return config.model_copy(update={"evaluation": evaluation})


def _extended(workshop: Workshop, record: TrialRecord, long: TrialConfig, by: TrialBackend) -> TrialRecord:
    """A trial of half the length that goes on to the whole, from where it stands."""
    checkpoint = extend(record.folder, long)
    assert checkpoint is not None
    assert checkpoint.step == record.points[-1].step
    extended = workshop.resume(read_trial(record.folder), ROWS, by=by)
    assert extended.points[: len(record.points)] == record.points
    assert not list(record.folder.glob("before*"))
    return extended


def _half(workshop: Workshop, config: TrialConfig, by: TrialBackend) -> TrialRecord:
    record = workshop.run("extended", config, ROWS, by=by, origin=Origin.PROPOSED)
    assert record.ending is not None
    assert record.ending.kind is TrialState.FINISHED
    return record


def _steps(record: TrialRecord) -> list[dict[str, float]]:
    """What was logged of every step, as the newest checkpoint has it."""
    (checkpoint,) = whole_checkpoints(record.folder)
    state = json.loads((checkpoint.path / "trainer_state.json").read_text())
    assert state["max_steps"] == state["global_step"] == STEPS
    names = ("step", "loss", "learning_rate", "num_input_tokens_seen")
    return [{name: entry[name] for name in names} for entry in state["log_history"] if "loss" in entry]


def _assert_near(extended: TrialRecord, straight: TrialRecord, tolerance: float, *, shared: int) -> None:
    points = {point.step: point for point in extended.points}
    same = [(points[point.step], point) for point in straight.points if point.step in points]
    assert len(same) == shared
    assert points[STEPS] == extended.points[-1]
    for name in ("tokens_seen", "eval_loss", "train_loss"):
        ours, expected = ([getattr(pair[side], name) for pair in same] for side in (0, 1))
        assert ours == pytest.approx(expected, abs=0, rel=tolerance), name
    assert extended.ending == straight.ending
    for found, wanted in zip(_steps(extended), _steps(straight), strict=True):
        assert found == pytest.approx(wanted, abs=0, rel=tolerance)
    losses = [record.row_losses() for record in (extended, straight)]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[0].loss_sums == pytest.approx(losses[1].loss_sums, abs=0, rel=10 * tolerance)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_in_the_engine_bit_by_bit(workshop: Workshop, engine: Engine, change: dict[str, Any]) -> None:
    long = _config(workshop, STEPS, 6, **change)
    straight = workshop.run("straight", long, ROWS, by=engine)
    half = _half(workshop, _config(workshop, STEPS // 2, 3, **change), engine)
    _assert_near(_extended(workshop, half, long, engine), straight, 0.0, shared=6)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_under_trl(workshop: Workshop, change: dict[str, Any]) -> None:
    long = _config(workshop, STEPS, 6, **change)
    straight = workshop.run("straight", long, ROWS)
    half = _half(workshop, _config(workshop, STEPS // 2, 3, **change), TRL)
    _assert_near(_extended(workshop, half, long, TRL), straight, TOLERANCE, shared=6)


@pytest.mark.parametrize("by_engine", [True, False], ids=["engine", "trl"])
def test_begun_by_one_and_extended_by_the_other(workshop: Workshop, engine: Engine, by_engine: bool) -> None:
    long = _config(workshop, STEPS, 6, **CHANGES[0])
    first, then = (engine, TRL) if by_engine else (TRL, engine)
    straight = workshop.run("straight", long, ROWS, by=engine)
    half = _half(workshop, _config(workshop, STEPS // 2, 3, **CHANGES[0]), first)
    _assert_near(_extended(workshop, half, long, then), straight, ROUNDING, shared=6)


def test_one_that_is_paused(workshop: Workshop, engine: Engine) -> None:
    def pause(point: EvalPoint) -> Decision:
        return Decision.STOP if point.step >= 4 else Decision.CONTINUE

    # Its evaluations stand at other steps once it is longer: the points of either length are kept.
    long = _config(workshop, STEPS, 3, **CHANGES[0])
    straight = workshop.run("straight", long, ROWS, by=engine)
    short = _config(workshop, STEPS // 2, 3, **CHANGES[0])
    paused = workshop.run("paused", short, ROWS, pause, engine, Origin.PROPOSED)
    assert paused.ending is None
    assert [point.step for point in paused.points] == [2, 4]
    _assert_near(_extended(workshop, paused, long, engine), straight, 0.0, shared=3)


def test_twice(workshop: Workshop, engine: Engine) -> None:
    straight = workshop.run("straight", _config(workshop, STEPS, 12, **CHANGES[0]), ROWS, by=engine)
    record = _half(workshop, _config(workshop, 3, 3, **CHANGES[0]), engine)
    for steps in (7, STEPS):
        record = _extended(workshop, record, _config(workshop, steps, steps, **CHANGES[0]), engine)
    # One step passes two of the twelve points.
    _assert_near(record, straight, 0.0, shared=11)
