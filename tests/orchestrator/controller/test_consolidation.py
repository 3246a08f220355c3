"""A search that goes over from a trial on each GPU to all of them for one: its controller, pace and record, no Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event, Notice, TrialPaused
from orchestrator.planning import speed_cache as speed
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Consolidation, Placement, Search
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
from trials.records.trial_dir import EndingKind, TrialDir

TWO = Consolidation(2, 1.6, "0002", "it looks most promising", START.isoformat())


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
    finish(run, controller, base, EndingKind.FINISHED)
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
    assert controller.regrouped is not None
    assert (controller.regrouped.ranks, controller.regrouped.speedup) == (2, pytest.approx(1.6))
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
    assert controller.regrouped is None


def test_what_an_earlier_search_measured_decides(tmp_path: Path) -> None:
    search = search_for()
    together = replace(search, ranks=2, placement=Placement(1, 1))
    throughput = ThroughputModel()
    throughput.observe(search.recipe.trial_config({}), 1000, 900.0)
    speed.save_speed(together, throughput)
    assert speed.measured_scaling(search, 2, 1.0) == pytest.approx(1000 / 900)
    controller, _ = promising(tmp_path / "run", search, seconds_left=700.0)
    assert controller.regrouped is None  # two are hardly faster than one here


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
