"""A search that goes over from a trial on each GPU to all of them for one: rule, controller, throughput and record."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.controller.budget import SearchBudget
from orchestrator.controller.consolidation import FinalistCandidate, OnAllGpus, finalist, plan_consolidation
from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event, Notice, TrialPaused
from orchestrator.controller.trials import Trial
from orchestrator.planning import speed_cache as speed
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Consolidation, Placement, Search
from orchestrator.surrogate.curve_model import Forecast
from search_spaces.loader import load_recipe
from tests.conftest import SMALL
from tests.support.fake_search import (
    BASE_LOSS,
    START,
    Clock,
    begin,
    evaluate,
    finish,
    leave,
    make_controller,
    make_run,
    make_search,
    point,
    record,
    run_probe,
)
from trials.records.trial_dir import Ending, Origin, TrialDir
from trials.state import TrialState

TWO = Consolidation(2, 1.6, "0002", "it looks most promising", START.isoformat())
ON_TWO = OnAllGpus(ranks=2, scaling=1.8, change_seconds=60.0)
LEADER, SECOND = FinalistCandidate("0003", 1.0, 1000.0), FinalistCandidate("0002", 1.2, 100.0)


def test_what_is_too_slow_for_one_gpu_and_not_for_two_gets_both() -> None:
    assert finalist([SECOND, LEADER], best_loss=1.1, seconds_left=900.0, together=ON_TWO) == LEADER


@pytest.mark.parametrize(
    ("seconds_left", "why"),
    [(1000.0, "it's complete in time on one"), (680.0, "hardly in time on two"), (300.0, "on two neither")],
)
def test_else_trials_go_on_side_by_side(seconds_left: float, why: str) -> None:
    assert finalist([SECOND, LEADER], 1.1, seconds_left, ON_TWO) is None, why


def test_only_the_most_promising_counts_and_only_if_it_may_win() -> None:
    slow = FinalistCandidate("0004", 1.05, 1000.0)
    assert finalist([slow, FinalistCandidate("0005", 1.0, 10.0)], 1.1, 900.0, ON_TWO) is None
    assert finalist([LEADER], 0.9, 900.0, ON_TWO) is None
    assert finalist([], 1.1, 900.0, ON_TWO) is None


@pytest.mark.parametrize(("predicted", "is_planned"), [(0.7, True), (0.9, False)])
@pytest.mark.parametrize("ended", [state for state in TrialState if state.is_terminal])
def test_a_finalist_has_to_beat_every_trial_that_has_ended_however_it_has(
    ended: TrialState, predicted: float, *, is_planned: bool
) -> None:
    search = replace(search_for(), shortened=1.0)
    config = search.recipe.trial_config({})
    budget = SearchBudget(search, 2, [], lambda: search.deadline.training_ends - timedelta(seconds=700))
    budget.throughput.observe(config, 100, 100.0)
    trials = [
        Trial("0001", Origin.PROPOSED, "proposed", config, [point(1.0, 100)]),
        Trial("0002", Origin.PROPOSED, "proposed", config, [point(0.8, 300)], Ending(ended, "made up")),
    ]
    planned = plan_consolidation(budget, trials, lambda _: Forecast(predicted, 0.1))
    assert (planned is not None) is is_planned


def search_for(*settings: str) -> Search:
    usual = ("engine=shared", "train_tokens=900", "full_trials=null", "search.regroup=true")
    recipe = load_recipe("demo", [*SMALL, *usual, *settings], environ={}).recipe
    search = replace(make_search(recipe, seconds=4000), data={"train": {"rows": 90, "tokens": 900}})
    return replace(search, placement=Placement(2, 2, most_ranks=2))


def evaluated(run: RunDir, controller: SearchController, trial_id: str, loss: float, tokens: int) -> bool:
    """A token takes a second."""
    evaluation = point(loss, tokens, seconds=float(tokens))
    record(TrialDir(run.trial(trial_id)), evaluation)
    goes_on = controller.on_result(trial_id, evaluation)
    controller.on_idle()
    return goes_on


def measure(run: RunDir, controller: SearchController) -> None:
    base = begin(controller)
    evaluate(run, controller, base, BASE_LOSS, 0)
    finish(run, controller, base, TrialState.FINISHED)
    run_probe(controller, tokens_per_second=1.0)


def promising(path: Path, search: Search, seconds_left: float) -> tuple[SearchController, list[Event]]:
    """So long before the end two trials run, and the better one has most of its way before it."""
    run, clock, events = make_run(path, search), Clock(), []
    controller = make_controller(run, search, clock=clock, events=events)
    measure(run, controller)
    first, second = begin(controller), begin(controller)
    clock.forward(controller.search.deadline.training_seconds_left(START) - seconds_left)
    evaluated(run, controller, first.trial_id, 2.5, 100)
    evaluated(run, controller, second.trial_id, 1.0, 100)
    return controller, events


def test_the_conductor_makes_room_for_the_most_promising_trial(tmp_path: Path) -> None:
    search = search_for()
    controller, events = promising(tmp_path, search, seconds_left=700.0)
    assert controller.consolidation is not None
    assert (controller.consolidation.ranks, controller.consolidation.speedup) == (2, pytest.approx(1.6))
    said = [event.text for event in events if isinstance(event, Notice)]
    assert "from now on 2 GPUs train one trial" in said[-1]
    assert "never measured on this machine" in said[-1]
    assert controller.suggest() == "over"
    run = RunDir(tmp_path)
    running = [name for name in ("0001", "0002") if run.trial(name).is_dir()]
    assert not any(evaluated(run, controller, name, 0.9, 200) for name in running)
    assert any(isinstance(event, TrialPaused) and "all GPUs go to" in event.reason for event in events)
    for name in running:
        controller.on_trial_end(name)
    controller.close()
    assert all(record.ending is None for record in run.records() if record.id != "0000")


@pytest.mark.parametrize(
    ("settings", "seconds_left"),
    [
        ((), 2000.0),
        ((), 300.0),
        (("search.regroup=false",), 700.0),
        (("search.regroup=null",), 700.0),
        (("engine=trl",), 700.0),
        (("space.effective_batch={choices: [1, 4]}",), 700.0),
    ],
)
def test_trials_stay_apart(tmp_path: Path, settings: tuple[str, ...], seconds_left: float) -> None:
    controller, _ = promising(tmp_path, search_for(*settings), seconds_left)
    assert controller.consolidation is None


def test_what_an_earlier_search_measured_decides(tmp_path: Path) -> None:
    search = search_for()
    together = replace(search, ranks=2, placement=Placement(1, 1))
    throughput = ThroughputModel()
    throughput.observe(search.recipe.trial_config({}), 1000, 900.0)
    speed.save_speed(together, throughput)
    assert speed.measured_scaling(search, 2, 1.0) == pytest.approx(1000 / 900)
    controller, _ = promising(tmp_path / "run", search, seconds_left=700.0)
    assert controller.consolidation is None  # two are hardly faster than one here


def test_the_speed_of_trials_apart_tells_that_of_trials_together(tmp_path: Path) -> None:
    config = search_for().recipe.trial_config({})
    throughput = ThroughputModel(TWO)
    for _ in range(5):
        throughput.observe(config, 1000, 1000.0)
    assert throughput.seconds_per_token(config) == pytest.approx(1 / 1.6)
    for _ in range(20):
        throughput.observe(config, 1000, 500.0, ranks=2)
    assert throughput.seconds_per_token(config) == pytest.approx(0.5, rel=0.03)
    assert throughput.speedup == pytest.approx(2.0, rel=0.03)


def test_a_resumed_session_knows_both(tmp_path: Path) -> None:
    search = search_for()
    run = make_run(tmp_path, search)
    folder = TrialDir(run.trial("0001"))
    controller = make_controller(run, search)
    measure(run, controller)
    leave(controller, begin(controller))
    points = [point(2.0, 100, seconds=100.0), point(1.9, 200, seconds=200.0)]
    together = [replace(point(1.8, 200 + 100 * n, seconds=200.0 + 50 * n), ranks=2) for n in range(1, 8)]
    for evaluation in (*points, *together):
        record(folder, evaluation)
    throughput = ThroughputModel.from_records(run.records(), TWO)
    assert throughput.seconds_per_token() == pytest.approx(0.5, rel=0.1)
    run.write_search(replace(search, ranks=2, regrouped=TWO, opening_seconds=7.5))
    read = run.read_search()
    assert (read.ranks, read.regrouped, read.opening_seconds) == (2, TWO, 7.5)
