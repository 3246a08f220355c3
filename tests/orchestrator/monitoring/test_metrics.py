"""What Prometheus is told of a search: real events of a real controller, on a clock that is moved by hand."""

from __future__ import annotations

import pytest

from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import in_turn
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.monitoring.metrics import METRICS, Sample, SearchMetrics
from orchestrator.monitoring.progress import Progress
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from tests.support.fake_search import Clock, begin, evaluate, finish, leave, run_base
from trials.records.memory_report import MemoryReport, write_memory_report
from trials.records.trial_dir import TrialDir
from trials.state import TrialState

FULL = 900


class Watched:
    """A search whose metrics are looked at."""

    def __init__(self, run: RunDir, search: Search) -> None:
        self.clock = Clock()
        progress = Progress(tuple(search.recipe.space))
        self.metrics = SearchMetrics(progress, run, search, self.clock)
        listener = in_turn(progress.apply, self.metrics.apply)
        self.controller = SearchController(run, search, 2, listener, now=self.clock)
        self.run = run

    def of(self, trial_id: str) -> dict[str, float]:
        found = [sample for sample in self.metrics.current() if sample.tags.get("trial") == trial_id]
        return {sample.metric.name.removeprefix("qlora_trial_"): sample.value for sample in found}

    def states(self) -> dict[str, float]:
        found = [sample for sample in self.metrics.current() if "state" in sample.tags]
        return {sample.tags["state"]: sample.value for sample in found if sample.value}

    def of_search(self) -> dict[str, float]:
        found: list[Sample] = [sample for sample in self.metrics.current() if not sample.tags]
        return {sample.metric.name.removeprefix("qlora_search_"): sample.value for sample in found}

    def begin(self) -> TrialRequest:
        return begin(self.controller)


@pytest.fixture
def watched(run: RunDir, search: Search) -> Watched:
    watched = Watched(run, search)
    run_base(run, watched.controller)
    return watched


def test_an_evaluation_shows_in_all_figures_of_its_trial(watched: Watched) -> None:
    trial = watched.begin()
    write_memory_report(TrialDir(trial.folder), MemoryReport(7, 5_000_000, 4, recomputation=False))
    evaluate(watched.run, watched.controller, trial, 2.5, 300)
    found = watched.of(trial.trial_id)
    assert found["eval_loss"] == found["best_eval_loss"] == 2.5
    assert found["memory_bytes"] == 5_000_000
    assert found["fraction_trained"] == pytest.approx(300 / FULL)
    assert found["rung"] == 2  # 100 and 300 tokens
    whole = watched.of_search()
    assert (whole["best_eval_loss"], whole["base_eval_loss"], whole["trained_tokens"]) == (2.5, 3.0, 400)


def test_time_left_goes_on_between_evaluations(watched: Watched) -> None:
    before = watched.of_search()["seconds_left"]
    watched.clock.forward(25)
    assert watched.of_search()["seconds_left"] == before - 25


def test_trials_are_counted_by_state(watched: Watched) -> None:
    first, second = watched.begin(), watched.begin()
    assert watched.states() == {"running": 2}
    evaluate(watched.run, watched.controller, first, 2.5, FULL)
    finish(watched.run, watched.controller, first, TrialState.FINISHED)
    assert watched.states() == {"running": 1, "finished": 1}
    finish(watched.run, watched.controller, second, TrialState.DIVERGED)
    assert watched.states() == {"finished": 1, "diverged": 1}


def test_a_trial_that_left_is_shown_once_more_and_then_no_longer(watched: Watched) -> None:
    trial = watched.begin()
    evaluate(watched.run, watched.controller, trial, 2.5, FULL)
    finish(watched.run, watched.controller, trial, TrialState.FINISHED)
    assert watched.of(trial.trial_id)["eval_loss"] == 2.5
    assert watched.of(trial.trial_id)["tokens_per_second"] == 0
    watched.clock.forward(600)
    assert watched.of(trial.trial_id) == {}
    assert watched.of_search()["best_eval_loss"] == 2.5


def test_a_session_knows_of_those_before_it(watched: Watched, run: RunDir, search: Search) -> None:
    trial = watched.begin()
    evaluate(watched.run, watched.controller, trial, 2.5, FULL)
    finish(watched.run, watched.controller, trial, TrialState.FINISHED)
    paused = watched.begin()
    evaluate(watched.run, watched.controller, paused, 2.8, 100)
    leave(watched.controller, paused)
    again = SearchMetrics(Progress(()), run, search, Clock())
    found = {(sample.metric.name, *sample.tags.values()): sample.value for sample in again.current()}
    assert found["qlora_search_trials", "finished"] == found["qlora_search_trials", "paused"] == 1
    assert found["qlora_search_best_eval_loss",] == 2.5


def test_every_metric_has_one_name_and_its_tags() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.tags[0] == "search" and metric.description for metric in METRICS)
