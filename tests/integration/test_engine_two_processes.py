"""One trial in the engines of two real processes, against the same trial in one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.process_pool import ENDED, Together
from tests.support.trained_trials import CHECKPOINT, Workshop, step_losses
from tests.support.worker_groups import RankTrial, evaluate_base, oom_events, train
from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.records.checkpoints import choose_checkpoint
from trials.records.rewind import rewind
from trials.records.trial_dir import Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState
from trials.system.distributed import ALONE, ProcessGroup
from trials.training.outcome import TrialInterrupted

pytestmark = pytest.mark.slow

ROWS = 17
"""Every epoch ends with a step of one row, of which one of the two processes has none."""
NEAR = 1e-5
CHANGES: list[dict[str, Any]] = [
    {},
    {"optimizer": "paged_adamw_8bit", "lora_rank": 64, "scheduler": "linear", "max_grad_norm": None},
    {"loraplus_ratio": 4.0, "weight_decay": 0.1, "target_modules": ["q_proj", "down_proj"]},
    {"scheduler": "inverse_sqrt", "adapter_average": 0.2},
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Together]:
    together = Together(2)
    yield together
    together.close()


def begun(workshop: Workshop, name: str, config: TrialConfig) -> RankTrial:
    folder = TrialDir(workshop.path / name)
    folder.begin(config, Origin.SINGLE, name)
    return RankTrial(folder.path, config, ROWS)


def scored(config: TrialConfig) -> TrialConfig:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"score_rows": 3})})


def assert_same(found: TrialRecord, expected: TrialRecord) -> None:
    """Losses to rounding, everything else to the letter."""
    assert found.ending == expected.ending
    for name in ("step", "tokens_seen", "score"):
        ours, theirs = ([getattr(point, name) for point in record.points] for record in (found, expected))
        assert ours == theirs, name
    for name in ("eval_loss", "best_eval_loss", "train_loss"):
        ours, theirs = ([getattr(point, name) for point in record.points] for record in (found, expected))
        assert ours == pytest.approx(theirs, abs=NEAR, rel=0), name
    rows, others = found.row_losses(), expected.row_losses()
    assert rows is not None
    assert others is not None
    assert rows.token_counts == others.token_counts
    assert rows.loss_sums == pytest.approx(others.loss_sums, abs=100 * NEAR, rel=0)


def files(folder: Path) -> set[str]:
    """Names of all that a trial has left; those of event files begin with a time."""
    return {
        str(path.relative_to(folder)) if path.parent.name != "tensorboard" else "tensorboard/events"
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_two_train_as_one(workshop: Workshop, pair: Together, change: dict[str, Any]) -> None:
    config = scored(workshop.config(**change)) if not change else workshop.config(**change)
    alone = begun(workshop, "alone", config)
    train(ALONE, alone)
    both = begun(workshop, "both", config)
    ending, same = pair.run(train, both)
    assert ending == same
    found, expected = read_trial(both.folder), read_trial(alone.folder)
    assert_same(found, expected)
    assert step_losses(found) == pytest.approx(step_losses(expected), abs=NEAR, rel=0)
    assert found.ending is not None
    assert found.ending.kind is TrialState.FINISHED


def test_only_the_first_writes(workshop: Workshop, pair: Together) -> None:
    alone = begun(workshop, "alone", scored(workshop.config()))
    train(ALONE, alone)
    elsewhere = workshop.path / "of-the-second"
    both = replace(begun(workshop, "both", scored(workshop.config())), elsewhere=elsewhere)
    pair.run(train, both)
    assert files(both.folder) == files(alone.folder)
    assert len(list((both.folder / "tensorboard").iterdir())) == 1
    steps = [json.loads(line)["step"] for line in (both.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [point.step for point in read_trial(alone.folder).points]
    assert not elsewhere.exists() or not files(elsewhere)


def test_a_trial_goes_on_with_more_processes_or_fewer(workshop: Workshop, pair: Together) -> None:
    trials = {name: begun(workshop, name, workshop.config()) for name in ("of-one", "of-two")}
    train(ALONE, trials["of-one"])
    pair.run(train, trials["of-two"])
    straight = {name: read_trial(trial.folder) for name, trial in trials.items()}
    losses = {name: step_losses(record) for name, record in straight.items()}
    for name, record in straight.items():
        rewind(record, choose_checkpoint(record.folder, CHECKPOINT))
        assert read_trial(record.folder).points[-1].step <= CHECKPOINT
        assert read_trial(record.folder).ending is None
        goes_on = replace(trials[name], resumes=True)
        if name == "of-one":
            pair.run(train, goes_on)
        else:
            train(ALONE, goes_on)
        resumed = read_trial(record.folder)
        assert_same(resumed, record)
        assert step_losses(resumed) == pytest.approx(losses[name], abs=NEAR, rel=0)


def test_the_base_is_evaluated_by_both(workshop: Workshop, pair: Together) -> None:
    alone, both = (begun(workshop, name, scored(workshop.config())) for name in ("alone", "both"))
    evaluate_base(ALONE, alone)
    assert len(set(pair.run(evaluate_base, both))) == 1
    (found,), (expected,) = (read_trial(trial.folder).points for trial in (both, alone))
    assert found.eval_loss == pytest.approx(expected.eval_loss, abs=NEAR)
    assert found.score == expected.score


@pytest.fixture
def longest_row(workshop: Workshop, small_data: TrialData) -> int:
    return max(len(row.input_ids) for row in list(small_data.train.rows)[:ROWS])


def test_one_that_is_short_of_memory_takes_less_at_once(workshop: Workshop, pair: Together, longest_row: int) -> None:
    alone = begun(workshop, "alone", workshop.config())
    train(ALONE, alone)
    trial = begun(workshop, "both", workshop.config())
    pair.run(train, replace(trial, most_tokens_of_the_second=longest_row, micro_batches_before=5))
    assert pair.run(oom_events)[1] > 0
    assert_same(read_trial(trial.folder), read_trial(alone.folder))
    assert step_losses(read_trial(trial.folder)) == pytest.approx(
        step_losses(read_trial(alone.folder)), abs=NEAR, rel=0
    )


@pytest.mark.parametrize("micro_batches_before", [0, 5], ids=["at-once", "while-it-trains"])
def test_where_not_one_row_fits_on_one_the_trial_ends_on_all(
    workshop: Workshop, pair: Together, micro_batches_before: int
) -> None:
    trial = begun(workshop, "too-large", workshop.config())
    endings = pair.run(train, replace(trial, most_tokens_of_the_second=0, micro_batches_before=micro_batches_before))
    assert [ending.kind for ending in endings] == [TrialState.OUT_OF_MEMORY] * 2
    ending = read_trial(trial.folder).ending
    assert ending is not None
    assert ending.kind is TrialState.OUT_OF_MEMORY
    following = begun(workshop, "next", workshop.config())
    assert [ending.kind for ending in pair.run(train, following)] == [TrialState.FINISHED] * 2


def test_time_is_over_for_both_when_it_is_for_one(workshop: Workshop, pair: Together) -> None:
    alone, both = (
        replace(begun(workshop, name, workshop.config()), time_is_over_for_the_second=True)
        for name in ("alone", "both")
    )
    train(ALONE, alone)
    pair.run(train, both)
    found = read_trial(both.folder)
    assert_same(found, read_trial(alone.folder))
    assert [point.step for point in found.points] == [1]


def test_both_leave_when_one_is_cancelled(workshop: Workshop, pair: Together) -> None:
    trial = begun(workshop, "called-off", workshop.config())
    trial = replace(trial, called_off_at_question=2, elsewhere=workshop.path / "of-the-second")
    assert pair.run(train, trial) == [None, None]
    left = read_trial(trial.folder)
    assert (left.points, left.ending) == ((), None)
    following = begun(workshop, "next", workshop.config())
    assert [ending.kind for ending in pair.run(train, following)] == [TrialState.FINISHED] * 2


def left_alone(ranks: ProcessGroup, trial: RankTrial, work: Callable[[ProcessGroup, RankTrial], Any]) -> Any:
    """The second process ends when the first has begun."""
    if not ranks.is_first:
        os._exit(1)
    return work(ranks, trial)


@pytest.mark.parametrize("work", [train, evaluate_base])
def test_who_loses_the_other_process_is_cut_off_and_has_not_failed(
    workshop: Workshop, work: Callable[[ProcessGroup, RankTrial], Any]
) -> None:
    trial = begun(workshop, "alone", workshop.config())
    pair = Together(2)
    try:
        found, ended = pair.run(left_alone, trial, work)
    finally:
        pair.close()
    assert ended == ENDED
    assert isinstance(found, TrialInterrupted), repr(found)
    assert str(found).startswith("another of the trial's processes has ended: ")
    assert read_trial(trial.folder).ending is None
