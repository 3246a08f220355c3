"""LCBench's tasks against the surrogate itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.simulator.landscapes import CURVES
from benchmarks.simulator.lcbench import CHOSEN_BY, EPOCHS, LCBench, judged_by
from search_spaces.loader import load_recipe
from trials.errors import InputError

needs_curves = pytest.mark.skipif(not (CURVES / "lcbench.onnx").exists(), reason="the curves are not in the repository")


@needs_curves
def test_losses_are_the_cross_entropies_of_the_surrogate() -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(CURVES / "lcbench.onnx"), providers=["CPUExecutionProvider"])
    code = json.loads((CURVES / "lcbench_encoding.json").read_text())["OpenML_task_id"]["167149"]
    # epoch, batch_size, learning_rate, momentum, weight_decay, num_layers, max_units, max_dropout
    rows = np.array([[epoch, 64, 0.01, 0.9, 0.02, 4, 512, 0.5] for epoch in (1, 26, 52)], dtype=np.float32)
    expected = session.run(None, {"x_cat": np.full((3, 1), code, np.int32), "x_cont": rows})[0][:, 2]
    values = {
        "effective_batch": 64,
        "learning_rate": 0.01,
        "warmup_fraction": 0.9,
        "weight_decay": 0.02,
        "lora_alpha": 4.3,
        "lora_rank": 512,
        "lora_dropout": 0.495,
    }
    task = LCBench("167149", CURVES)
    assert task.losses([values], [1 / 52, 0.5, 1.0])[0] == pytest.approx(expected, rel=1e-5)
    curve = task.curve("0001", load_recipe("demo", [], environ={}).recipe.hyperparameters_with(values))
    assert len(curve.points) == EPOCHS
    assert [curve.loss(fraction) for fraction in (1 / 52, 0.5, 1.0)] == pytest.approx(expected, rel=1e-5)


@needs_curves
def test_every_configuration_of_the_space_is_one_of_lcbench() -> None:
    pytest.importorskip("onnxruntime")
    task = LCBench("126025", CURVES)
    dimensions = json.loads((CURVES / "lcbench_config_space.json").read_text())["hyperparameters"]
    ranges = {each["name"]: (each["lower"], each["upper"], each["log"]) for each in dimensions if "lower" in each}
    same = {"batch_size": "effective_batch", "learning_rate": "learning_rate", "momentum": "warmup_fraction"}
    for name, own in {**same, "weight_decay": "weight_decay", "max_units": "lora_rank"}.items():
        assert (task.space[own].low, task.space[own].high, task.space[own].log) == pytest.approx(ranges[name])
    assert task.losses([task.start], [1.0]).shape == (1, 1)


@needs_curves
def test_tasks_to_judge_with_are_not_those_to_choose_by() -> None:
    judged = judged_by(CURVES)
    assert len(CHOSEN_BY) == 8
    assert len(judged) == 27
    assert not set(judged) & set(CHOSEN_BY)


@needs_curves
def test_an_unknown_task_is_named_with_those_that_there_are() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match=r"no task '1'.*126025"):
        LCBench("1", CURVES)


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no lcbench_encoding.json in .*--curves DIR"):
        LCBench("126025", tmp_path)
