"""Trials that are cut off at a step edge and resumed, in the engine and under TRL, against those that ran through."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SMALL
from tests.support.trained_trials import CHECKPOINT, STEPS, Workshop, step_losses
from trials.engine.engine import Engine
from trials.engine.model.decoder import Decoder
from trials.engine.model.packed_batch import PackedBatch
from trials.engine.runtime.step_loop import EngineClosedError
from trials.records.trial_dir import EvalPoint, TrialRecord, read_trial
from trials.train import main
from trials.training.training_run import Decision

pytestmark = pytest.mark.slow

ROWS = 18
"""The checkpoint lies in the second epoch, which ends with a step of two rows."""
ROUNDING = 2e-5
"""Between the engine and TRL. Measured: 1.4e-6, with 8-bit state 7.7e-6."""
CHANGES: list[dict[str, Any]] = [
    {},
    {"optimizer": "paged_adamw_8bit", "lora_rank": 64, "scheduler": "linear", "max_grad_norm": None},
    {"scheduler": "inverse_sqrt", "adapter_average": 0.2},
    {"loraplus_ratio": 4.0, "weight_decay": 0.1, "target_modules": ["q_proj", "down_proj"]},
]


def _assert_near(resumed: TrialRecord, straight: TrialRecord, tolerance: float) -> None:
    assert [(point.step, point.tokens_seen) for point in resumed.points] == [
        (point.step, point.tokens_seen) for point in straight.points
    ]
    assert resumed.ending == straight.ending
    for name in ("eval_loss", "best_eval_loss", "train_loss"):
        found, expected = ([getattr(point, name) for point in record.points] for record in (resumed, straight))
        assert found == pytest.approx(expected, abs=0, rel=tolerance), name
    assert step_losses(resumed) == pytest.approx(step_losses(straight), abs=0, rel=tolerance)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_trial_that_was_stopped_goes_on_bit_by_bit(
    workshop: Workshop, engine: Engine, change: dict[str, Any]
) -> None:
    config = workshop.config(**change)
    straight = workshop.run("straight", config, ROWS, by=engine)
    assert len(step_losses(straight)) == STEPS
    stopped = workshop.run("stopped", config, ROWS, _stop_after(CHECKPOINT), by=engine)
    assert stopped.ending is None
    assert CHECKPOINT < stopped.points[-1].step < STEPS
    _assert_near(workshop.resume(stopped, ROWS, by=engine), straight, 0.0)


@pytest.mark.parametrize("change", CHANGES[:3], ids=str)
def test_either_goes_on_from_the_other_s_checkpoint(workshop: Workshop, engine: Engine, change: dict[str, Any]) -> None:
    config = workshop.config(**change)
    straight = workshop.run("straight", config, ROWS, by=engine)
    ours = workshop.cut_off(config, ROWS, by=engine, name="ours")
    theirs = workshop.cut_off(config, ROWS, name="theirs")
    _assert_near(workshop.resume(ours, ROWS), straight, ROUNDING)
    _assert_near(workshop.resume(theirs, ROWS, by=engine), straight, ROUNDING)


def test_trials_whose_engine_ends_under_them_go_on_side_by_side_in_another(workshop: Workshop, engine: Engine) -> None:
    configs = {f"rate {rate}": workshop.config(learning_rate=rate) for rate in (1e-3, 3e-4)}
    straight = {name: workshop.run(f"straight {name}", config, ROWS, by=engine) for name, config in configs.items()}
    first = Engine(workshop.config().model, workshop.config().machine)
    meeting = threading.Barrier(len(configs))

    def close(point: EvalPoint) -> Decision:
        if point.step > CHECKPOINT:
            meeting.wait(60)
            first.close()
        return Decision.CONTINUE

    def cut_off(name: str) -> TrialRecord:
        with pytest.raises(EngineClosedError):
            workshop.run(name, configs[name], ROWS, close, by=first)
        return read_trial(workshop.path / name)

    with ThreadPoolExecutor() as pool:
        records = list(pool.map(cut_off, configs))
        assert [record.ending for record in records] == [None, None]
        resumed = list(pool.map(lambda record: workshop.resume(record, ROWS, by=engine), records))
    for name, record in zip(configs, resumed, strict=True):
        _assert_near(record, straight[name], ROUNDING)


def test_the_command_line_resumes_in_the_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    train = Decoder.train

    def watched(self: Decoder, batch: PackedBatch) -> torch.Tensor:
        trained.append(batch.row_count)
        return train(self, batch)

    monkeypatch.setattr(Decoder, "train", watched)
    out = tmp_path / "trial"
    settings = [*SMALL, "engine=shared", "checkpoint_every_rows=12", "learning_rate=1e-3"]
    assert main(["demo", "--set", *settings, "--out", str(out)]) == 0
    rows = sum(trained)
    straight = read_trial(out)
    assert main(["--resume", str(out), "--checkpoint", "3"]) == 0
    assert "going on from the checkpoint of step 3; what came after it is in" in capsys.readouterr().out
    assert sum(trained) == 2 * rows - 12
    resumed = read_trial(out)
    assert [point.eval_loss for point in resumed.points] == [point.eval_loss for point in straight.points]
    assert resumed.ending == straight.ending


def _stop_after(step: int) -> Callable[[EvalPoint], Decision]:
    return lambda point: Decision.STOP if point.step > step else Decision.CONTINUE
