"""Under TRL: the worst micro-step is tried first and leaves no trace; what doesn't fit into memory is split smaller."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from trl import SFTTrainer

from tests.support.small_splits import first_rows
from tests.support.trained_trials import Workshop
from trials.config import Machine, TrialConfig
from trials.data.dataset import TrialData
from trials.records.memory_report import Attempt, MemoryReport, read_memory_report
from trials.records.trial_dir import EvalPoint, TrialRecord, read_trial
from trials.state import TrialState
from trials.training.training_run import Decision
from trials.trl import trainer as trainer_module
from trials.trl.batch_size import BatchSetting, batch_settings, still_to_try

pytestmark = pytest.mark.slow

ROWS = 18
PAUSING = {"checkpoint_evaluations": True, "checkpoint_every_rows": None, "keep_checkpoints": 1}


def _losses(record: TrialRecord) -> list[tuple[int, float, float | None]]:
    return [(point.step, point.eval_loss, point.train_loss) for point in record.points]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimizer": "paged_adamw_8bit", "lora_rank": 64},
        {"neftune_noise_alpha": 5.0},
        {"loraplus_ratio": 4.0},
        {"adapter_average": 0.2},
    ],
    ids=str,
)
def test_what_is_tried_leaves_no_trace(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    config = workshop.config(PAUSING, **change)
    tried = workshop.run("tried", config, ROWS)
    monkeypatch.setattr(trainer_module, "dry_run", lambda *_: None)
    straight = workshop.run("straight", config, ROWS)
    assert _losses(tried) == _losses(straight)
    assert _logged(tried) == _logged(straight)


def _logged(record: TrialRecord) -> list[dict[str, float]]:
    """Of every step up to the newest checkpoint, without speeds."""
    (state,) = (record.folder / "checkpoints").rglob("trainer_state.json")
    entries = [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    assert {"grad_norm", "mean_token_accuracy", "num_tokens"} <= entries[0].keys()
    return [{key: entry[key] for key in entry if "runtime" not in key and "second" not in key} for entry in entries]


def _short_of_memory(monkeypatch: pytest.MonkeyPatch, fits: Callable[[SFTTrainer, int], bool]) -> None:
    """As on a GPU that has room for some micro-batches, by their rows, and not for others."""
    compute_loss = SFTTrainer.compute_loss

    def checked(self: SFTTrainer, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        if not fits(self, len(inputs["input_ids"])):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", checked)


def _tried(use: MemoryReport) -> list[tuple[int, bool, bool]]:
    return [(attempt.rows, attempt.recomputation, attempt.fits) for attempt in use.tried]


def _use(record: TrialRecord) -> MemoryReport:
    found = read_memory_report(record.folder)
    assert found is not None
    return found


@pytest.fixture
def straight(workshop: Workshop) -> TrialRecord:
    record = workshop.run("straight", workshop.config(PAUSING), ROWS)
    assert _tried(_use(record)) == [(4, False, True)]
    return record


def test_micro_batches_are_halved_until_they_fit(
    workshop: Workshop, straight: TrialRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    _short_of_memory(monkeypatch, lambda _, rows: rows <= 1)
    record = workshop.run("short", workshop.config(PAUSING), ROWS)
    assert _tried(_use(record)) == [(4, False, False), (2, False, False), (1, False, True)]
    assert (_use(record).micro_batch_rows, _use(record).recomputation) == (1, False)
    assert record.ending == straight.ending
    assert [loss for _, loss, _ in _losses(record)] == pytest.approx(
        [loss for _, loss, _ in _losses(straight)], abs=1e-4
    )
    assert not list(record.folder.glob("before*"))


def test_then_activations_are_recomputed_with_as_many_rows_as_fit(
    workshop: Workshop, straight: TrialRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    _short_of_memory(monkeypatch, lambda trainer, rows: bool(trainer.args.gradient_checkpointing) and rows <= 2)
    record = workshop.run("short", workshop.config(PAUSING), ROWS)
    without = [(rows, False, False) for rows in (4, 2, 1)]
    assert _tried(_use(record)) == [*without, (4, True, False), (2, True, True)]
    assert [loss for _, loss, _ in _losses(record)] == pytest.approx(
        [loss for _, loss, _ in _losses(straight)], abs=1e-4
    )


def test_what_fits_in_no_way_is_infeasible(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    _short_of_memory(monkeypatch, lambda *_: False)
    record = workshop.run("short", workshop.config(PAUSING), ROWS)
    assert record.ending is not None
    assert record.ending.kind is TrialState.OUT_OF_MEMORY
    assert not record.points
    assert _tried(_use(record)) == [(rows, recomputed, False) for recomputed in (False, True) for rows in (4, 2, 1)]


@pytest.mark.parametrize("keeps", [True, False], ids=["checkpoints", "none"])
def test_memory_that_runs_out_later_loses_no_evaluation(
    workshop: Workshop, straight: TrialRecord, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    def fits(trainer: SFTTrainer, rows: int) -> bool:
        return trainer.state.global_step < 7 or rows <= 2

    _short_of_memory(monkeypatch, fits)
    told: list[int] = []

    def hear(point: EvalPoint) -> Decision:
        told.append(point.step)
        return Decision.CONTINUE

    config = workshop.config(PAUSING if keeps else {"checkpoint_every_rows": None})
    record = workshop.run("short", config, ROWS, hear)
    assert record.ending == straight.ending
    assert [loss for _, loss, _ in _losses(record)] == pytest.approx(
        [loss for _, loss, _ in _losses(straight)], abs=1e-4
    )
    assert _tried(_use(record)) == [(4, False, True), (4, False, False), (2, False, True)]
    steps = [point.step for point in record.points]
    if keeps:
        assert told == steps
        assert not list(record.folder.glob("before*"))
    else:
        kept = read_trial(record.folder / "before-0")
        assert [point.step for point in kept.points] == [step for step in steps if step <= 7]
        assert told == [*(point.step for point in kept.points), *steps]


def test_a_paused_trial_goes_on_with_the_split_that_fitted(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def fits(_: SFTTrainer, rows: int) -> bool:
        seen.append(rows)
        return rows <= 1

    _short_of_memory(monkeypatch, fits)
    config = workshop.config(PAUSING)
    record = workshop.run("paused", config, ROWS, lambda _: Decision.STOP)
    assert max(seen) == 4
    seen.clear()
    workshop.resume(record, ROWS)
    assert set(seen) == {1}


def test_an_evaluation_is_made_in_smaller_batches(
    workshop: Workshop, straight: TrialRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trials.evaluation import eval_loss as evaluation

    batch_losses = evaluation._batch_losses

    def short(causal_lm: Any, rows: Any) -> list[float]:
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batch_losses(causal_lm, rows)

    monkeypatch.setattr(evaluation, "_batch_losses", short)
    record = workshop.run("short", workshop.config(PAUSING), ROWS)
    assert [loss for _, loss, _ in _losses(record)] == pytest.approx(
        [loss for _, loss, _ in _losses(straight)], abs=1e-5
    )


@pytest.mark.parametrize(
    ("batch", "machine", "expected"),
    [
        (12, {}, [(12, False), (6, False), (3, False), (1, False), (12, True), (6, True), (3, True), (1, True)]),
        (8, {"micro_batch_rows": 2}, [(2, False), (1, False), (2, True), (1, True)]),
        (4, {"gradient_checkpointing": True}, [(4, True), (2, True), (1, True)]),
    ],
)
def test_the_ways_to_split(batch: int, machine: dict[str, Any], expected: list[tuple[int, bool]]) -> None:
    assert batch_settings(batch, 100, Machine(**machine)) == [BatchSetting(*each) for each in expected]


def test_the_longest_rows_come_first(small_data: TrialData, small_config: TrialConfig) -> None:
    split = first_rows(small_data.train, 40)
    lengths = sorted((len(row.input_ids) for row in split.rows), reverse=True)
    found = [len(row.input_ids) for row in split.longest_rows(3 * lengths[0])]
    assert found == lengths[: len(found)]
    assert sum(found) >= 3 * lengths[0] > sum(found[:-1])
    assert len(split.longest_rows(10**9)) == 40


@pytest.mark.parametrize(
    ("latest", "fits", "expected"),
    [
        (BatchSetting(2, False), True, [(2, False), (1, False), (4, True), (2, True), (1, True)]),
        (BatchSetting(2, False), False, [(1, False), (4, True), (2, True), (1, True)]),
        (BatchSetting(1, True), False, [(1, True)]),
    ],
)
def test_what_ran_out_before_the_process_ended_is_not_tried_again(
    latest: BatchSetting, fits: bool, expected: list[tuple[int, bool]]
) -> None:
    attempt = Attempt(latest.rows, 100, latest.recomputation, fits)
    known = MemoryReport(None, None, latest.rows, latest.recomputation, (attempt,))
    assert still_to_try(batch_settings(4, 100, Machine()), known) == [BatchSetting(*each) for each in expected]
