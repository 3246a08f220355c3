"""The adapters between Ray Tune and the conductor; the whole of it runs in test_search.py."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator import tuner
from orchestrator.conductor import Conductor
from orchestrator.engines import Engines
from orchestrator.run_folder import Placement, RunFolder, Search
from orchestrator.study import STUDY_NAME
from tests.searches import BASE_LOSS, make_conductor, point, record, run_base, run_trial
from trials.config import TrialConfig
from trials.errors import SearchBroken
from trials.records import EndingKind, EvalPoint, TrialFolder

APART = Placement(engines=0, slots=1)
"""Every trial in a process of its own."""


@pytest.fixture
def conductor(run: RunFolder, search: Search) -> Conductor:
    return make_conductor(run, search, slots=2)


@pytest.fixture
def python_handles_sigint() -> Iterator[None]:
    """A shell's background jobs, and some CI systems, start Python with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_suggestion_is_all_that_a_worker_needs(conductor: Conductor, run: RunFolder, search: Search) -> None:
    searcher = tuner._Searcher(conductor, run, search, Engines(search, APART))
    base, start = searcher.suggest("a"), searcher.suggest("b")
    assert isinstance(base, dict)
    assert isinstance(start, dict)
    assert (base["trial_id"], base["origin"]) == ("0000", "base")
    assert TrialConfig.model_validate_json(start["config"]).hyperparameters.learning_rate == 2e-4
    assert start["folder"] == str(run.trial("0001"))
    assert start["stop_at"] == search.deadline.training_ends.timestamp()
    assert searcher.suggest("c") is None  # both slots are taken


def test_the_searcher_is_finished_when_the_conductor_is(conductor: Conductor, run: RunFolder, search: Search) -> None:
    conductor.interrupt()
    assert tuner._Searcher(conductor, run, search, Engines(search, APART)).suggest("a") == Searcher.FINISHED


def test_a_trial_whose_process_died_is_told_so(conductor: Conductor, run: RunFolder, search: Search) -> None:
    run_base(run, conductor)
    searcher = tuner._Searcher(conductor, run, search, Engines(search, APART))
    searcher.suggest("b")
    searcher.on_trial_complete("b", error=True)
    ending = run.records()[1].ending
    assert ending is not None
    assert ending.kind is EndingKind.FAILED


def test_the_scheduler_says_what_the_conductor_says(conductor: Conductor, run: RunFolder, search: Search) -> None:
    run_base(run, conductor, BASE_LOSS)
    run_trial(run, conductor, [(100, 1.0), (900, 0.5)])
    suggestion = tuner._Searcher(conductor, run, search, Engines(search, APART)).suggest("c")
    trial = SimpleNamespace(config=suggestion)
    scheduler = tuner._Scheduler(conductor)
    for evaluation, word in ((point(1.5, 50), TrialScheduler.CONTINUE), (point(1.4, 100), TrialScheduler.STOP)):
        record(TrialFolder(run.trial("0002")), evaluation)
        assert scheduler.on_trial_result(None, trial, {**asdict(evaluation), "training_iteration": 1}) == word


def test_everything_stops_when_the_conductor_says_so(conductor: Conductor, search: Search) -> None:
    stopper = tuner._Stopper(conductor, Engines(search, APART))
    assert not stopper.stop_all()
    assert not stopper("a", {})
    conductor.interrupt()
    assert stopper.stop_all()


def test_the_first_interrupt_is_ours_the_second_is_pythons(conductor: Conductor, python_handles_sigint: None) -> None:
    with tuner._interrupts(conductor):
        signal.raise_signal(signal.SIGINT)
        assert conductor.was_interrupted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_tune_pickles_leaves_the_conductor_behind(conductor: Conductor, run: RunFolder, search: Search) -> None:
    engines = Engines(search, APART)
    searcher = tuner._Searcher(conductor, run, search, engines)
    for adapter in (searcher, tuner._Scheduler(conductor), tuner._Stopper(conductor, engines)):
        assert pickle.loads(pickle.dumps(adapter)).__dict__ == {}


def test_when_tune_gives_up_nothing_stays_running(run: RunFolder, search: Search) -> None:
    now = datetime.now(UTC)
    search = replace(search, deadline=replace(search.deadline, started=now, ends=now + timedelta(hours=1)))
    conductor = make_conductor(run, search, slots=1, clock=lambda: datetime.now(UTC))

    def broken(_trial_id: str, _point: EvalPoint) -> bool:
        raise OSError("no space left on device")

    conductor.on_eval = broken  # type: ignore[method-assign]
    with tuner.ray_session(dashboard=False), pytest.raises(SearchBroken, match="no space left on device"):
        tuner.run_tune(conductor, run, search, APART)
    states = {t.state for t in optuna.load_study(study_name=STUDY_NAME, storage=run.study_url).trials}
    assert TrialState.RUNNING not in states
