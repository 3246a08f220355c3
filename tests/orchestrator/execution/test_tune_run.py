"""The adapters between Ray Tune and the controller; the whole of it runs in test_search.py."""

from __future__ import annotations

import json
import pickle
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from benchmarks.system.sleeping_engine import SleepingEngine
from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event, TrialEvaluated, TrialStarted
from orchestrator.controller.study import STUDY_NAME
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution import tune_adapters
from orchestrator.execution import tune_run as tuner
from orchestrator.execution.reporting import REQUEST_KEY
from orchestrator.execution.worker_pool import WorkerPool
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from orchestrator.storage.visibility import UNSEEN
from search_spaces.schema import Recipe
from tests.support.fake_search import BASE_LOSS, make_controller, make_run, make_search, point, record, run_base
from trials.errors import SearchBroken
from trials.records.trial_dir import EndingKind, EvalPoint, Origin, TrialDir

pytestmark = pytest.mark.slow

APART = Placement(engines=0, slots=1)
"""Every trial in a process of its own."""


@pytest.fixture
def controller(run: RunDir, search: Search) -> SearchController:
    return make_controller(run, search, slots=2)


@pytest.fixture
def python_handles_sigint() -> Iterator[None]:
    """A shell's background jobs, and some CI systems, start Python with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_suggestion_is_all_that_a_worker_needs(controller: SearchController, run: RunDir, search: Search) -> None:
    searcher = tune_adapters.SearcherAdapter(controller, run, WorkerPool(search, APART))
    base = searcher.suggest("a")
    assert isinstance(base, dict)
    assert (base[REQUEST_KEY].trial_id, base[REQUEST_KEY].origin) == ("0000", Origin.BASE)
    assert searcher.suggest("b") is None  # nothing runs beside the base
    searcher.on_trial_complete("a", error=True)
    run_base(run, controller)
    suggested = searcher.suggest("b")
    assert isinstance(suggested, dict)
    start: TrialRequest = pickle.loads(pickle.dumps(suggested[REQUEST_KEY]))
    assert (start.trial_id, start.segment, start.resumes) == ("0001", "0001", False)
    assert start.config.hyperparameters.learning_rate == 2e-4
    assert start.folder == run.trial("0001")
    assert start.group == run.path.name
    assert start.stop_at == controller.search.deadline.training_ends.timestamp()
    assert isinstance(searcher.suggest("c"), dict)
    assert searcher.suggest("d") is None  # both slots are taken


def test_the_searcher_is_finished_when_the_conductor_is(
    controller: SearchController, run: RunDir, search: Search
) -> None:
    controller.interrupt()
    assert tune_adapters.SearcherAdapter(controller, run, WorkerPool(search, APART)).suggest("a") == Searcher.FINISHED


def test_a_trial_whose_process_died_goes_on_in_a_stretch_of_its_own(
    controller: SearchController, run: RunDir, search: Search
) -> None:
    run_base(run, controller)
    searcher = tune_adapters.SearcherAdapter(controller, run, WorkerPool(search, APART))
    searcher.suggest("b")
    searcher.on_trial_complete("b", error=True)
    assert run.records()[1].ending is None
    again = searcher.suggest("c")
    assert isinstance(again, dict)
    assert (again[REQUEST_KEY].trial_id, again[REQUEST_KEY].segment) == ("0001", "0001-2")
    (run.path / "ray" / "0001-3").mkdir(parents=True)  # of an earlier session
    resumed = tune_adapters.SearcherAdapter(controller, run, WorkerPool(search, APART))
    resumed._segments |= {"0001", "0001-2"}
    searcher.on_trial_complete("c", error=True)
    last = resumed.suggest("d")
    assert isinstance(last, dict)
    assert last[REQUEST_KEY].segment == "0001-4"


def test_the_scheduler_says_what_the_conductor_says(controller: SearchController, run: RunDir, search: Search) -> None:
    run_base(run, controller, BASE_LOSS)
    searcher = tune_adapters.SearcherAdapter(controller, run, WorkerPool(search, APART))
    start, other = (SimpleNamespace(config=searcher.suggest(name)) for name in "bc")
    scheduler = tune_adapters.SchedulerAdapter(controller, searcher)
    # A starting point runs to its end; one that is worse than the base after a third of it needn't go on.
    for trial, loss, word in ((start, 1.5, TrialScheduler.CONTINUE), (other, 9.0, TrialScheduler.STOP)):
        evaluation = point(loss, 300)
        record(TrialDir(run.trial(trial.config[REQUEST_KEY].trial_id)), evaluation)
        assert scheduler.on_trial_result(None, trial, {**asdict(evaluation), "training_iteration": 1}) == word


@pytest.fixture
def scheduler(controller: SearchController, run: RunDir, search: Search) -> tune_adapters.SchedulerAdapter:
    searcher = tune_adapters.SearcherAdapter(controller, run, WorkerPool(search, APART))
    return tune_adapters.SchedulerAdapter(controller, searcher)


def test_a_process_that_has_become_free_is_the_newest_trial_s(scheduler: tune_adapters.SchedulerAdapter) -> None:
    states = (Trial.TERMINATED, Trial.PENDING, Trial.PENDING, Trial.RUNNING)
    trials = [SimpleNamespace(status=state) for state in states]
    chosen = scheduler.choose_trial_to_run(SimpleNamespace(get_trials=lambda: trials))
    assert chosen is trials[2]
    assert scheduler.choose_trial_to_run(SimpleNamespace(get_trials=lambda: trials[:1])) is None


def test_a_machine_that_does_not_see_its_trial_is_named_in_the_log(
    controller: SearchController,
    scheduler: tune_adapters.SchedulerAdapter,
    search: Search,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "error.txt").write_text(f"Traceback\n  File\nRunFolderError: third {UNSEEN}, /mnt/0001. Mount it.\n")
    config = search.recipe.trial_config({})
    request = TrialRequest("0001", Origin.PROPOSED, "proposed", config, tmp_path)
    trial = {"trial_id": "a", "config": {REQUEST_KEY: request}, "get_pickled_error": lambda: None}
    scheduler.on_trial_error(None, SimpleNamespace(error_file=str(tmp_path / "error.txt"), **trial))
    assert caplog.messages == [f"RunFolderError: third {UNSEEN}, /mnt/0001. Mount it."]
    assert not controller.should_stop


def test_everything_stops_when_the_conductor_says_so(controller: SearchController, run: RunDir, search: Search) -> None:
    engines = WorkerPool(search, APART)
    stopper = tune_adapters.StopperAdapter(controller, tune_adapters.SearcherAdapter(controller, run, engines), engines)
    assert not stopper.stop_all()
    assert not stopper("a", {})
    controller.interrupt()
    assert stopper.stop_all()


def test_the_first_interrupt_is_ours_the_second_is_pythons(
    controller: SearchController, python_handles_sigint: None
) -> None:
    with tuner._interrupts(controller):
        signal.raise_signal(signal.SIGINT)
        assert controller.was_interrupted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_tune_pickles_leaves_the_conductor_behind(
    controller: SearchController, run: RunDir, search: Search
) -> None:
    engines = WorkerPool(search, APART)
    searcher = tune_adapters.SearcherAdapter(controller, run, engines)
    scheduler = tune_adapters.SchedulerAdapter(controller, searcher)
    for adapter in (searcher, scheduler, tune_adapters.StopperAdapter(controller, searcher, engines)):
        assert pickle.loads(pickle.dumps(adapter)).__dict__ == {}


def test_when_tune_gives_up_nothing_stays_running(run: RunDir, search: Search) -> None:
    now = datetime.now(UTC)
    deadline = replace(search.deadline, started=now, ends=now + timedelta(hours=1))
    search = replace(search, deadline=deadline, placement=APART)
    controller = make_controller(run, search, slots=1, clock=lambda: datetime.now(UTC))

    def broken(_trial_id: str, _point: EvalPoint) -> bool:
        raise OSError("no space left on device")

    controller.on_result = broken  # type: ignore[method-assign]
    with tuner.ray_session(dashboard=False), pytest.raises(SearchBroken, match="no space left on device"):
        tuner.run_tune(controller, run)
    states = {t.state for t in optuna.load_study(study_name=STUDY_NAME, storage=run.study_url).trials}
    assert TrialState.RUNNING not in states


def test_several_trials_processes_start_side_by_side(
    tmp_path: Path, small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.execution.worker_pool.EngineWorker", SleepingEngine)
    settings = small_recipe.search.model_copy(update={"trials": 3, "concurrent_trials": 3})
    now = datetime.now(UTC)
    search = make_search(small_recipe.model_copy(update={"search": settings}))
    deadline = replace(search.deadline, started=now, ends=now + timedelta(hours=1))
    search = replace(search, deadline=deadline, shortened=1.0, placement=Placement(engines=1, slots=3))
    run, events = make_run(tmp_path / "run", search), list[Event]()
    with tuner.ray_session(dashboard=False):
        tuner.run_tune(SearchController(run, search, 3, events.append), run)
    assert [record.ending.kind for record in run.records() if record.ending] == [EndingKind.FINISHED] * 4
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


def test_tune_prints_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    quiet = tune_adapters.QuietProgress()
    trial = SimpleNamespace(last_result={"done": True, "training_iteration": 1}, run_metadata=SimpleNamespace())
    quiet.on_trial_result(1, [], trial, trial.last_result)
    quiet.on_trial_complete(1, [], trial)
    quiet.on_trial_complete(2, [], trial)
    assert capfd.readouterr().out == ""
    # Tune adds its own where it finds none.
    from ray.tune.utils.callback import _create_default_callbacks

    added = _create_default_callbacks([quiet], air_verbosity=None)
    assert [each for each in added if isinstance(each, TrialProgressCallback)] == [quiet]


def test_what_can_wait_is_done_when_tune_has_nothing_to_ask(
    controller: SearchController, run: RunDir, search: Search
) -> None:
    def known() -> int:
        return len(optuna.load_study(study_name=STUDY_NAME, storage=run.study_url).trials)

    run_base(run, controller)
    engines = WorkerPool(search, APART)
    searcher = tune_adapters.SearcherAdapter(controller, run, engines)
    searcher.suggest("b")
    assert known() == 0
    assert not tune_adapters.StopperAdapter(controller, searcher, engines).stop_all()
    assert known() == 1
