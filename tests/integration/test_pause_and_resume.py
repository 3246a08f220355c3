"""Trials that are paused at every evaluation and go on, in the engine and under TRL, against those that ran through."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.cli import run_command
from tests.support.trained_trials import TRL, Workshop
from trials.engine.engine import Engine
from trials.records.checkpoints import whole_checkpoints
from trials.records.trial_dir import EvalPoint, Origin, TrialRecord, read_trial
from trials.training.training_run import Decision, TrialBackend

pytestmark = pytest.mark.slow

ROWS = 18
"""Epochs end with a step of two rows."""
ALIKE, BESIDE, ROUNDING = 1e-6, 1e-5, 1e-4
"""In the engine, beside other trials, and between it and TRL."""
CHANGES: list[dict[str, Any]] = [
    {},
    {"optimizer": "paged_adamw_8bit", "lora_rank": 64, "scheduler": "linear"},
    {"scheduler": "inverse_sqrt", "adapter_average": 0.2},
]
PAUSING = {"checkpoint_evaluations": True, "checkpoint_every_rows": None, "keep_checkpoints": 1}


def _assert_near(found: TrialRecord, straight: TrialRecord, tolerance: float) -> None:
    for name in ("step", "tokens_seen", "eval_loss", "best_eval_loss", "train_loss"):
        ours, expected = ([getattr(point, name) for point in record.points] for record in (found, straight))
        assert ours == pytest.approx(expected, abs=tolerance, rel=0), name
    assert found.ending == straight.ending
    assert not list(found.folder.glob("before*"))
    losses = [record.row_losses() for record in (found, straight)]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[0].mean == pytest.approx(losses[1].mean, abs=tolerance, rel=0)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_paused_at_every_evaluation_its_losses_are_those_of_one_that_ran_through(
    workshop: Workshop, engine: Engine, change: dict[str, Any]
) -> None:
    config = workshop.config(PAUSING, **change)
    straight = workshop.run("straight", config, ROWS, by=engine)
    paused = workshop.in_segments("paused", config, ROWS, itertools.repeat(engine))
    _assert_near(paused, straight, ALIKE)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_stretches_may_be_run_by_either(workshop: Workshop, engine: Engine, change: dict[str, Any]) -> None:
    config = workshop.config(PAUSING, **change)
    straight = workshop.run("straight", config, ROWS, by=engine)
    ways: list[TrialBackend] = [TRL, engine, TRL, TRL, engine, engine]
    _assert_near(workshop.in_segments("in turn", config, ROWS, ways), straight, ROUNDING)


def test_under_trl_noise_goes_on_as_well(workshop: Workshop) -> None:
    config = workshop.config(PAUSING, neftune_noise_alpha=5.0)
    straight = workshop.run("straight", config, ROWS)
    _assert_near(workshop.in_segments("paused", config, ROWS, itertools.repeat(TRL)), straight, ALIKE)


def test_others_beside_it_and_another_engine_make_no_difference(workshop: Workshop, engine: Engine) -> None:
    configs = [workshop.config(PAUSING, learning_rate=rate, lora_rank=rank) for rate, rank in ((1e-3, 16), (3e-4, 4))]
    straight = [workshop.run(f"straight {number}", config, ROWS, by=engine) for number, config in enumerate(configs)]
    other = Engine(configs[0].model, configs[0].machine)

    def in_segments(number: int) -> TrialRecord:
        ways = itertools.cycle((engine, other))
        return workshop.in_segments(f"paused {number}", configs[number], ROWS, ways)

    with ThreadPoolExecutor() as pool:
        for found, expected in zip(pool.map(in_segments, range(2)), straight, strict=True):
            # Which steps two trials share is chance, and products of other sizes are summed in another order: 1.1e-6.
            _assert_near(found, expected, BESIDE)
    other.close()


@pytest.mark.parametrize("by_engine", [True, False], ids=["engine", "trl"])
def test_everything_is_on_disk_when_somebody_is_asked(workshop: Workshop, engine: Engine, by_engine: bool) -> None:
    seen: list[tuple[int, int, list[int]]] = []

    def look(point: EvalPoint) -> Decision:
        folder = workshop.path / "trial"
        record = read_trial(folder)
        steps = [checkpoint.step for checkpoint in whole_checkpoints(folder)]
        seen.append((point.step, record.points[-1].step, steps))
        assert record.points[-1] == point
        return Decision.CONTINUE if point.step < 10 else Decision.STOP

    # They are due at every step in any case: there's one of that step, and nothing of what isn't the newest.
    config = workshop.config({**PAUSING, "checkpoint_every_rows": 4})
    workshop.run("trial", config, ROWS, look, engine if by_engine else TRL)
    assert seen == [(step, step, [step]) for step, *_ in seen]
    assert len(seen) >= 4
    assert read_trial(workshop.path / "trial").ending is None


@pytest.mark.parametrize("by_engine", [True, False], ids=["engine", "trl"])
def test_the_last_evaluation_leaves_none(workshop: Workshop, engine: Engine, by_engine: bool) -> None:
    record = workshop.run("trial", workshop.config(PAUSING), ROWS, by=engine if by_engine else TRL)
    assert [checkpoint.step for checkpoint in whole_checkpoints(record.folder)] == [record.points[-2].step]


def test_another_process_goes_on(workshop: Workshop, engine: Engine) -> None:
    config = workshop.config(PAUSING)
    straight = workshop.run("straight", config, ROWS, by=engine)

    workshop.run("paused", config, ROWS, lambda _: Decision.STOP, engine, Origin.PROPOSED)
    done = run_command([sys.executable, "-m", "tests.support.resume_once", str(workshop.path / "paused"), str(ROWS)])
    assert done.returncode == 0, done.stderr
    _assert_near(read_trial(workshop.path / "paused"), straight, ALIKE)
