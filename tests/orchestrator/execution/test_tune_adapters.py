"""The adapters between Ray Tune and the controller, with a real pool of workers."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.controller.controller import SearchController
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution import tune_adapters
from orchestrator.execution import tune_run as tuner
from orchestrator.execution.reporting import REQUEST_KEY
from orchestrator.execution.worker_pool import WorkerPool
from orchestrator.scheduling import evidence
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from orchestrator.storage.visibility import UNSEEN
from search_spaces.schema import Recipe
from tests.support.fake_search import BASE_LOSS, make_controller, make_search, point, record, run_base
from tests.support.waiting import wait_until
from trials.records.trial_dir import Origin, TrialDir

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def resident_pool(small_recipe: Recipe) -> Iterator[WorkerPool]:
    """A real worker of two slots, whose trials nobody begins."""
    with tuner.ray_session(dashboard=False):
        pool = WorkerPool(make_search(small_recipe), Placement(engines=1, slots=2))
        yield pool
        pool.close()


@pytest.fixture
def pool(resident_pool: WorkerPool) -> Iterator[WorkerPool]:
    yield resident_pool
    resident_pool.free_all_slots()


def end_with_error(searcher: tune_adapters.SearcherAdapter, tune_id: str) -> None:
    """Tune says that an error ended a trial; its worker says that nothing of it runs."""
    searcher.on_trial_complete(tune_id, error=True)

    def is_reported() -> bool:
        searcher.report_exits()
        return not searcher._leaving

    assert wait_until(is_reported, seconds=60)


@pytest.fixture
def controller(run: RunDir, search: Search) -> SearchController:
    return make_controller(run, search, slots=2)


def test_a_suggestion_is_all_that_a_worker_needs(
    controller: SearchController, run: RunDir, search: Search, pool: WorkerPool
) -> None:
    searcher = tune_adapters.SearcherAdapter(controller, run, pool)
    base = searcher.suggest("a")
    assert isinstance(base, dict)
    assert (base[REQUEST_KEY].trial_id, base[REQUEST_KEY].origin) == ("0000", Origin.BASE)
    assert searcher.suggest("b") is None  # nothing runs beside the base
    end_with_error(searcher, "a")
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
    controller: SearchController, run: RunDir, pool: WorkerPool
) -> None:
    controller.interrupt()
    assert tune_adapters.SearcherAdapter(controller, run, pool).suggest("a") == Searcher.FINISHED


def test_a_trial_whose_process_died_goes_on_in_a_stretch_of_its_own(
    controller: SearchController, run: RunDir, pool: WorkerPool
) -> None:
    run_base(run, controller)
    searcher = tune_adapters.SearcherAdapter(controller, run, pool)
    searcher.suggest("b")
    end_with_error(searcher, "b")
    assert run.records()[1].ending is None
    again = searcher.suggest("c")
    assert isinstance(again, dict)
    assert (again[REQUEST_KEY].trial_id, again[REQUEST_KEY].segment) == ("0001", "0001-2")
    (run.path / "ray" / "0001-3").mkdir(parents=True)  # of an earlier session
    resumed = tune_adapters.SearcherAdapter(controller, run, pool)
    resumed._segments |= {"0001", "0001-2"}
    end_with_error(searcher, "c")
    last = resumed.suggest("d")
    assert isinstance(last, dict)
    assert last[REQUEST_KEY].segment == "0001-4"


def test_the_scheduler_says_what_the_conductor_says(
    controller: SearchController, run: RunDir, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "_ROOM", math.inf)  # any trial may pause, the first ones too
    run_base(run, controller, BASE_LOSS)
    searcher = tune_adapters.SearcherAdapter(controller, run, pool)
    start, other = (SimpleNamespace(config=searcher.suggest(name)) for name in "bc")
    scheduler = tune_adapters.SchedulerAdapter(controller, searcher)
    # A starting point runs to its end; one that is worse than the base after a third of it needn't go on.
    for trial, loss, word in ((start, 1.5, TrialScheduler.CONTINUE), (other, 9.0, TrialScheduler.STOP)):
        evaluation = point(loss, 300)
        record(TrialDir(run.trial(trial.config[REQUEST_KEY].trial_id)), evaluation)
        assert scheduler.on_trial_result(None, trial, {**asdict(evaluation), "training_iteration": 1}) == word


@pytest.fixture
def scheduler(controller: SearchController, run: RunDir, pool: WorkerPool) -> tune_adapters.SchedulerAdapter:
    searcher = tune_adapters.SearcherAdapter(controller, run, pool)
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


def test_everything_stops_when_the_conductor_says_so(
    controller: SearchController, run: RunDir, pool: WorkerPool
) -> None:
    stopper = tune_adapters.StopperAdapter(controller, tune_adapters.SearcherAdapter(controller, run, pool), pool)
    assert not stopper.stop_all()
    assert not stopper("a", {})
    controller.interrupt()
    assert stopper.stop_all()


def test_what_tune_pickles_leaves_the_conductor_behind(
    controller: SearchController, run: RunDir, pool: WorkerPool
) -> None:
    searcher = tune_adapters.SearcherAdapter(controller, run, pool)
    scheduler = tune_adapters.SchedulerAdapter(controller, searcher)
    for adapter in (searcher, scheduler, tune_adapters.StopperAdapter(controller, searcher, pool)):
        assert pickle.loads(pickle.dumps(adapter)).__dict__ == {}


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
    controller: SearchController, run: RunDir, pool: WorkerPool
) -> None:
    def known() -> int:
        return len(optuna.load_study(study_name=None, storage=run.study_url).trials)

    run_base(run, controller)
    searcher = tune_adapters.SearcherAdapter(controller, run, pool)
    searcher.suggest("b")
    assert known() == 1  # the base model
    assert not tune_adapters.StopperAdapter(controller, searcher, pool).stop_all()
    assert known() == 2
