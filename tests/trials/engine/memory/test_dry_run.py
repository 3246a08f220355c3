"""In the engine: the worst micro-step is tried first and leaves no trace, and what memory has shown isn't forgotten."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.small_splits import first_rows
from tests.support.trained_trials import Workshop
from trials.data.dataset import TrialData
from trials.engine.engine import Engine
from trials.engine.lora.adapter import Adapter
from trials.engine.memory.oom_history import OomHistory, TrialFootprint, VerifiedFit
from trials.engine.model.decoder import Decoder
from trials.engine.model.packed_batch import PackedBatch
from trials.engine.optim.flat import FlatOptimizer
from trials.model.activation_policy import ActivationPolicy
from trials.model.memory_plan import MicroBatchPlan
from trials.records.memory_report import MemoryReport, read_memory_report, write_memory_report
from trials.records.trial_dir import TrialDir, TrialRecord
from trials.state import TrialState

pytestmark = pytest.mark.slow

ROWS = 18


@pytest.fixture(scope="module")
def longest(small_data: TrialData) -> int:
    """Tokens of the longest row that is trained on."""
    return first_rows(small_data.train, ROWS).longest


def _watch(monkeypatch: pytest.MonkeyPatch, name: str, look: Callable[[PackedBatch], None]) -> None:
    """Looks at every batch that is trained on (`train`) or evaluated (`losses`)."""
    real = getattr(Decoder, name)

    def watched(self: Decoder, batch: PackedBatch) -> Tensor:
        look(batch)
        found: Tensor = real(self, batch)
        return found

    monkeypatch.setattr(Decoder, name, watched)


def _short_of_memory(monkeypatch: pytest.MonkeyPatch, name: str, tokens: int) -> list[int]:
    """As on a GPU that has room for so many tokens at once; gives the tokens of what was tried in vain."""
    failed: list[int] = []

    def check(batch: PackedBatch) -> None:
        if len(batch.input_ids) > tokens:
            failed.append(len(batch.input_ids))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    _watch(monkeypatch, name, check)
    return failed


def _use(record: TrialRecord) -> MemoryReport:
    found = read_memory_report(record.folder)
    assert found is not None
    return found


def _losses(record: TrialRecord) -> list[tuple[int, float, float | None]]:
    return [(point.step, point.eval_loss, point.train_loss) for point in record.points]


def _eval_losses(record: TrialRecord) -> list[float]:
    return [point.eval_loss for point in record.points]


@pytest.mark.parametrize("change", [{}, {"optimizer": "paged_adamw_8bit", "lora_rank": 64}], ids=str)
def test_what_is_tried_leaves_no_trace(
    workshop: Workshop, engine: Engine, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    tokens: list[int] = []
    _watch(monkeypatch, "train", lambda batch: tokens.append(len(batch.input_ids)))
    config = workshop.config(**change)
    tried = workshop.run("tried", config, ROWS, by=engine)
    assert tokens[0] > max(tokens[1:])
    (attempt,) = _use(tried).tried
    assert (attempt.tokens, attempt.fits) == (tokens[0], True)
    tokens.clear()
    again = workshop.run("again", config, ROWS, by=engine)
    assert len(tokens) == 12  # nothing more is tried of what was shown to fit
    assert _use(again).tried == ()
    one, other = ([value for point in _losses(record) for value in point] for record in (tried, again))
    # On a GPU sums come in another order each time.
    assert one == (pytest.approx(other, rel=1e-6) if torch.cuda.is_available() else other)


def test_a_larger_one_is_tried_again(workshop: Workshop, engine: Engine) -> None:
    runs = [workshop.run(str(rank), workshop.config(lora_rank=rank), ROWS, by=engine) for rank in (8, 16, 4)]
    assert [len(_use(record).tried) for record in runs] == [1, 1, 0]


def test_micro_steps_shrink_until_they_fit_and_stay_small_for_the_next(
    workshop: Workshop,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    longest: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    straight = workshop.run("straight", workshop.config(lora_rank=4), ROWS, by=engine)
    failed = _short_of_memory(monkeypatch, "train", 2 * longest)
    record = workshop.run("short", workshop.config(), ROWS, by=engine)
    tried = _use(record).tried
    assert [attempt.fits for attempt in tried] == [*[False] * (len(tried) - 1), True]
    assert [attempt.tokens for attempt in tried[:-1]] == failed
    assert len(failed) >= 2
    said = [f"out of memory trying {tokens} tokens at once; at most" for tokens in failed]
    assert [message[: len(one)] for message, one in zip(caplog.messages, said, strict=True)] == said
    assert record.ending == straight.ending
    assert _use(record).micro_batch_rows in (1, 2)
    failed.clear()
    for name in ("next", "and next"):
        after = workshop.run(name, workshop.config(), ROWS, by=engine)
        assert _eval_losses(after) == pytest.approx(_eval_losses(record), abs=1e-6)
    assert failed == []


def test_memory_that_runs_out_while_it_trains_is_on_record(
    workshop: Workshop, engine: Engine, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    straight = workshop.run("straight", workshop.config(), ROWS, by=engine)
    failed = _short_of_memory(monkeypatch, "train", longest)
    record = workshop.run("short", workshop.config(), ROWS, by=engine)
    assert [attempt.tokens for attempt in _use(record).tried] == failed
    assert failed
    assert _eval_losses(record) == pytest.approx(_eval_losses(straight), abs=1e-4)


def test_an_optimizer_step_that_memory_does_not_suffice_for_is_taken_again(
    workshop: Workshop, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workshop.config(optimizer="adamw_torch_fused")
    straight = workshop.run("straight", config, ROWS, by=engine)
    step, calls = FlatOptimizer.step, iter(range(1000))

    def short(self: FlatOptimizer) -> None:
        if next(calls) in (3, 4):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        step(self)

    monkeypatch.setattr(FlatOptimizer, "step", short)
    record = workshop.run("short", config, ROWS, by=engine)
    assert [attempt.fits for attempt in _use(record).tried] == [False, False]
    assert _eval_losses(record) == pytest.approx(_eval_losses(straight), abs=1e-6)
    monkeypatch.setattr(FlatOptimizer, "step", lambda _: torch.empty(2**55))
    infeasible = workshop.run("infeasible", config, ROWS, by=engine)
    assert infeasible.ending is not None
    assert infeasible.ending.kind is TrialState.OUT_OF_MEMORY


def test_who_does_not_fit_with_a_single_row_is_infeasible_and_others_go_on(
    workshop: Workshop, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = workshop.run("alone", workshop.config(), ROWS, by=engine)

    def check(batch: PackedBatch) -> None:
        if any(segment.adapter.rank == 64 for segment in batch.segments):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    _watch(monkeypatch, "train", check)
    with ThreadPoolExecutor() as pool:
        ended = [
            pool.submit(workshop.run, str(rank), workshop.config(lora_rank=rank), ROWS, by=engine) for rank in (16, 64)
        ]
        beside, infeasible = (future.result() for future in ended)
    assert infeasible.ending is not None
    assert infeasible.ending.kind is TrialState.OUT_OF_MEMORY
    assert not infeasible.points
    tried = _use(infeasible).tried
    assert tried[-1].rows == 1
    assert not any(attempt.fits for attempt in tried)
    assert beside.ending == expected.ending
    assert _eval_losses(beside) == pytest.approx(_eval_losses(expected), abs=1e-4)
    assert engine._loop._manager.oom_history.ooms == 0


def test_an_evaluation_is_made_in_smaller_batches(
    workshop: Workshop, engine: Engine, monkeypatch: pytest.MonkeyPatch, small_data: TrialData
) -> None:
    straight = workshop.run("straight", workshop.config(), ROWS, by=engine)
    failed = _short_of_memory(monkeypatch, "losses", small_data.eval.longest)
    record = workshop.run("short", workshop.config(), ROWS, by=engine)
    assert _eval_losses(record) == pytest.approx(_eval_losses(straight), abs=1e-6)
    assert 1 <= len(failed) <= 10  # of 7 evaluations of 12 rows


def test_an_adapter_that_memory_does_not_suffice_for_is_made_beside_smaller_micro_steps(
    workshop: Workshop, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = workshop.run("straight", workshop.config(), ROWS, by=engine)
    limit = engine._loop._manager.max_tokens

    def short(*given: Any) -> Adapter:
        if engine._loop._manager.max_tokens > least:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return Adapter(*given)

    monkeypatch.setattr("trials.engine.runtime.trial_thread.Adapter", short)
    least = limit // 4
    record = workshop.run("short", workshop.config(), ROWS, by=engine)
    assert record.ending == straight.ending
    assert _eval_losses(record) == pytest.approx(_eval_losses(straight), abs=1e-4)
    least, known = 0, engine._loop._manager.oom_history.ooms
    infeasible = workshop.run("infeasible", workshop.config(), ROWS, by=engine)
    assert infeasible.ending is not None
    assert infeasible.ending.kind is TrialState.OUT_OF_MEMORY
    assert engine._loop._manager.oom_history.ooms == known > 0


@pytest.mark.parametrize(
    ("tokens", "other", "footprint", "is_known"),
    [
        (100, 10, TrialFootprint(5, 50, 1.0), True),
        (101, 10, TrialFootprint(5, 50, 1.0), False),
        (100, 11, TrialFootprint(5, 50, 1.0), False),
        (100, 10, TrialFootprint(6, 50, 1.0), False),
        (100, 10, TrialFootprint(5, 51, 1.0), False),
    ],
)
def test_what_asks_for_no_more_than_was_shown_to_fit_is_known(
    tokens: int, other: int, footprint: TrialFootprint, is_known: bool
) -> None:
    oom_history, plan = OomHistory(), MicroBatchPlan(100, (ActivationPolicy.SAVE_ALL,))
    oom_history.add_fit(VerifiedFit(plan, 100, 10, TrialFootprint(5, 50, 9.0), 3))
    assert (oom_history.verified_fit(plan, tokens, other, footprint) is not None) == is_known
    assert oom_history.verified_fit(MicroBatchPlan(100, (ActivationPolicy.RECOMPUTE_ALL,)), 1, 1, footprint) is None


def test_what_is_known_of_memory_is_read_back(tmp_path: Path) -> None:
    assert read_memory_report(tmp_path) is None
    use = MemoryReport(10, None, 2, recomputation=True)
    write_memory_report(TrialDir(tmp_path), use)
    assert read_memory_report(tmp_path) == use
    (tmp_path / "memory.json").write_text("{")
    assert read_memory_report(tmp_path) is None
