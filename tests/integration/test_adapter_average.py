"""With `adapter_average` the adapter that is evaluated and kept is the average, in the engine and under TRL."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.trained_trials import STEPS, TRL, Workshop
from trials.data.dataset import TrialData
from trials.engine.engine import Engine
from trials.evaluation.eval_loss import evaluate_rows
from trials.evaluation.evaluator import load_model
from trials.records.checkpoints import AVERAGE, choose_checkpoint, whole_checkpoints
from trials.records.trial_dir import TrialRecord, step_of
from trials.state import TrialState

pytestmark = pytest.mark.slow

ROWS, SHARE = 18, 0.3
AVERAGED: dict[str, Any] = {"adapter_average": SHARE, "scheduler": "inverse_sqrt"}
WEIGHTS = "adapter_model.safetensors"
EVERY_STEP = {"checkpoint_every_rows": 4}
by_either = pytest.mark.parametrize("by_engine", [True, False], ids=["engine", "trl"])


def _averages(record: TrialRecord) -> dict[int, dict[str, torch.Tensor]]:
    """After every step, from the weights in its checkpoint, in float64."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    for checkpoint in whole_checkpoints(record.folder):
        step, weights = checkpoint.step, load_file(checkpoint.path / WEIGHTS)
        newest, before = 1 / (1 + SHARE * (step - 1)), found.get(step - 1, weights)
        found[step] = {name: (1 - newest) * before[name].double() + newest * weights[name].double() for name in weights}
    return found


def _assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert weight.dtype == torch.float32
        assert torch.allclose(weight.double(), expected[name], atol=1e-7), name


@by_either
@pytest.mark.parametrize("change", [{}, {"use_dora": True}], ids=str)
def test_what_is_kept_is_the_average_and_training_goes_on_from_the_weights(
    workshop: Workshop, engine: Engine, small_data: TrialData, by_engine: bool, change: dict[str, Any]
) -> None:
    if by_engine and change:
        pytest.skip("the engine has no DoRA")
    config, by = workshop.config(EVERY_STEP, **AVERAGED, **change), engine if by_engine else TRL
    record = workshop.run("averaged", config, ROWS, by=by)
    averages = _averages(record)
    assert list(averages) == list(range(1, STEPS + 1))
    for checkpoint in whole_checkpoints(record.folder):
        _assert_same_weights(load_file(checkpoint.path / AVERAGE), averages[checkpoint.step])
    best = record.best_point
    assert best is not None
    _assert_same_weights(load_file(record.adapter / WEIGHTS), averages[best.step])
    # The recorded loss is that of the adapter that is kept.
    loss = evaluate_rows(load_model(str(record.adapter)).model, small_data.eval.rows, 16).mean
    assert loss == pytest.approx(best.eval_loss, abs=1e-5)
    plain = workshop.run("plain", workshop.config(EVERY_STEP, scheduler="inverse_sqrt", **change), ROWS, by=by)
    ours, theirs = (load_file(choose_checkpoint(each.folder, STEPS).path / WEIGHTS) for each in (record, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert abs(record.points[-1].eval_loss - plain.points[-1].eval_loss) > 1e-4


@by_either
def test_weights_that_are_no_numbers_are_divergence(workshop: Workshop, engine: Engine, by_engine: bool) -> None:
    # After one step queries times keys overflow; in the average there would be little of it.
    huge = {"learning_rate": 1.0, "loraplus_ratio": 1000.0, "lora_alpha": 1e18, "adapter_average": 0.9}
    config = workshop.config(**huge)
    record = workshop.run("diverging", config, ROWS, by=engine if by_engine else TRL)
    assert record.ending is not None
    assert record.ending.kind is TrialState.DIVERGED
    assert all(math.isfinite(point.eval_loss) for point in record.points)


@by_either
def test_the_best_adapter_takes_no_room_of_its_own_in_a_checkpoint_of_its_step(
    workshop: Workshop, engine: Engine, by_engine: bool
) -> None:
    config = workshop.config({"checkpoint_evaluations": True, "checkpoint_every_rows": None}, **AVERAGED)
    record = workshop.run("averaged", config, ROWS, by=engine if by_engine else TRL)
    were_best = []
    for checkpoint in whole_checkpoints(record.folder):
        average, best = checkpoint.path / AVERAGE, checkpoint.path / "best_adapter" / WEIGHTS
        were_best.append(step_of(best.parent) == checkpoint.step)
        assert average.samefile(best) == were_best[-1]
        assert not (checkpoint.path / WEIGHTS).samefile(best)
    assert any(were_best)
