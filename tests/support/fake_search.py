"""Builds run folders and conducts searches without training: real folders, real study, made-up losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event
from orchestrator.controller.failure_policy import DIED, TrialExit
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.state.deadline import Deadline
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from search_spaces.schema import Recipe
from trials.metrics.row_losses import RowLosses
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialDir
from trials.state import TrialState

START = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)
BASE_LOSS = 3.0
ROWS = 4


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def make_search(recipe: Recipe, seconds: float = 3600, reserve_seconds: float = 600) -> Search:
    """A search whose reserve is fixed; where it has to be measured, the recipe's own `search.reserve` is None.

    At START as much of the search is over as is left, so that starting points run to their ends at once.
    """
    deadline = Deadline(START - timedelta(seconds=seconds), START + timedelta(seconds=seconds), reserve_seconds)
    settings = recipe.search.model_copy(update={"reserve": f"{reserve_seconds:g}s"})
    recipe = recipe.model_copy(update={"search": settings})
    return Search(recipe, {"search.seed": "--set"}, deadline, gpus_per_trial=0, full_tokens=900)


def make_run(path: Path, search: Search) -> RunDir:
    (path / "trials").mkdir(parents=True)
    run = RunDir(path)
    run.write_search(search)
    return run


def make_controller(
    run: RunDir,
    search: Search,
    *,
    slots: int = 2,
    clock: Callable[[], datetime] | None = None,
    events: list[Event] | None = None,
) -> SearchController:
    listener = (events if events is not None else []).append
    return SearchController(run, search, slots, listener, now=clock or Clock())


def point(loss: float, tokens: int, *, best: float | None = None, seconds: float = 10.0) -> EvalPoint:
    return EvalPoint(
        step=tokens // 100,
        tokens_seen=tokens,
        eval_loss=loss,
        best_eval_loss=loss if best is None else best,
        seconds=seconds,
    )


def row_losses(loss: float, spread: float = 0.0) -> RowLosses:
    """Rows of ten tokens around a mean loss; `spread` moves them apart without moving the mean."""
    sums = [10 * (loss + spread * (-1) ** i * (1 + i // 2)) for i in range(ROWS)]
    return RowLosses(sums, [10] * ROWS)


def save_adapter(path: Path) -> None:
    """Stands in for PEFT where a test is about folders, not weights."""
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(b"weights")


def record(folder: TrialDir, evaluation: EvalPoint, *, base: bool = False) -> None:
    folder.record(evaluation, row_losses(evaluation.eval_loss), None if base else save_adapter)


def evaluate(run: RunDir, controller: SearchController, request: TrialRequest, loss: float, tokens: int) -> bool:
    """What a worker does at an evaluation: to disk first, then ask."""
    is_base = request.origin is Origin.BASE
    evaluation = point(loss, tokens)
    record(TrialDir(run.trial(request.trial_id)), evaluation, base=is_base)
    goes_on = controller.on_result(request.trial_id, evaluation)
    controller.on_idle()
    return goes_on


def finish(run: RunDir, controller: SearchController, request: TrialRequest, kind: TrialState) -> None:
    """What a worker does at the end."""
    TrialDir(run.trial(request.trial_id)).end(Ending(kind, f"made up: {kind.value}"))
    leave(controller, request)


def leave(controller: SearchController, request: TrialRequest, *, died: bool = False) -> None:
    """Nobody runs a trial any more."""
    controller.on_trial_end(request.trial_id, DIED if died else TrialExit())
    controller.on_idle()


def begin(controller: SearchController) -> TrialRequest:
    answer = controller.suggest()
    controller.on_idle()
    assert isinstance(answer, TrialRequest), answer
    return answer


def run_base(run: RunDir, controller: SearchController, loss: float = BASE_LOSS) -> None:
    """What comes before a search's first trial: the base, and what measures the speed (100 tokens a second)."""
    base = begin(controller)
    evaluate(run, controller, base, loss, 0)
    finish(run, controller, base, TrialState.FINISHED)
    run_probe(controller)


def run_probe(controller: SearchController, tokens_per_second: float = 100.0) -> None:
    probe = begin(controller)
    folder = TrialDir(probe.folder)
    for tokens in (50, 100):
        seconds = tokens / tokens_per_second
        evaluation = replace(point(BASE_LOSS, tokens, seconds=seconds), tokens_per_second=tokens_per_second)
        record(folder, evaluation)
        assert controller.on_result(probe.trial_id, evaluation)
    folder.end(Ending(TrialState.FINISHED, "made up: finished"))
    controller.on_trial_end(probe.trial_id)


def run_trial(run: RunDir, controller: SearchController, losses: Sequence[tuple[int, float]]) -> TrialRequest:
    """A whole trial of (tokens, loss) evaluations, until it ends or is stopped."""
    request = begin(controller)
    for tokens, loss in losses:
        if not evaluate(run, controller, request, loss, tokens):
            leave(controller, request)
            return request
    finish(run, controller, request, TrialState.FINISHED)
    return request
