"""Ray Tune as it runs a search; the whole of it runs in test_search.py."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from benchmarks.system.sleeping_engine import SleepingEngine
from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event, TrialEvaluated, TrialStarted
from orchestrator.execution import tune_run as tuner
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from search_spaces.schema import Recipe
from tests.support.fake_search import make_controller, make_run, make_search
from trials.errors import SearchBroken
from trials.records.trial_dir import EvalPoint
from trials.state import TrialState

pytestmark = pytest.mark.slow

ONE = Placement(engines=1, slots=2)


@pytest.fixture
def controller(run: RunDir, search: Search) -> SearchController:
    return make_controller(run, search, slots=2)


@pytest.fixture
def python_handles_sigint() -> Iterator[None]:
    """A shell's background jobs, and some CI systems, start Python with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_is_ours_the_second_is_pythons(
    controller: SearchController, python_handles_sigint: None
) -> None:
    with tuner._interrupts(controller):
        signal.raise_signal(signal.SIGINT)
        assert controller.was_interrupted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_when_tune_gives_up_nothing_stays_running(run: RunDir, search: Search) -> None:
    now = datetime.now(UTC)
    deadline = replace(search.deadline, started=now, ends=now + timedelta(hours=1))
    search = replace(search, deadline=deadline, placement=ONE)
    controller = make_controller(run, search, slots=1, clock=lambda: datetime.now(UTC))

    def broken(_trial_id: str, _point: EvalPoint) -> bool:
        raise OSError("no space left on device")

    controller.on_result = broken  # type: ignore[method-assign]
    with tuner.ray_session(dashboard=False), pytest.raises(SearchBroken, match="no space left on device"):
        tuner.run_tune(controller, run)
    states = {t.state for t in optuna.load_study(study_name=None, storage=run.study_url).trials}
    assert OptunaState.RUNNING not in states


def test_several_trials_processes_start_side_by_side(
    tmp_path: Path, small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.execution.worker_pool.TrialWorker", SleepingEngine)
    settings = small_recipe.search.model_copy(update={"trials": 3, "concurrent_trials": 3})
    now = datetime.now(UTC)
    search = make_search(small_recipe.model_copy(update={"search": settings}))
    deadline = replace(search.deadline, started=now, ends=now + timedelta(hours=1))
    search = replace(search, deadline=deadline, shortened=1.0, placement=Placement(engines=1, slots=3))
    run, events = make_run(tmp_path / "run", search), list[Event]()
    with tuner.ray_session(dashboard=False):
        tuner.run_tune(SearchController(run, search, 3, events.append), run)
    assert [record.ending.kind for record in run.records() if record.ending] == [TrialState.FINISHED] * 4
    # One by one, the third is handed out when the second's process is there: later than the first is evaluated.
    told = [event for event in events if isinstance(event, TrialStarted | TrialEvaluated)]
    assert [(type(event), event.trial_id) for event in told[2:5]] == [
        (TrialStarted, "0001"),
        (TrialStarted, "0002"),
        (TrialStarted, "0003"),
    ]
    # What Tune writes at the end, within the reserve, has no results of the trials.
    (state,) = (run.path / "ray").glob("experiment_state-*.json")
    kept = [json.loads(metadata) for _, metadata in json.loads(state.read_text())["trial_data"]]
    assert len(kept) == 4
    assert not any(each["metric_analysis"] or each["metric_n_steps"] or each["last_result"] for each in kept)
