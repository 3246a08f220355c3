"""Searches of the benchmark, and what is imperfect about them. The tables here have one loss per configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.simulator import regret
from benchmarks.simulator.landscapes import Task
from benchmarks.simulator.regret import DEFAULT_PAIR, Setting, play, recipe_for, restarts, search_seed
from benchmarks.simulator.simulator import Accident, Machine, SimulatedSearch
from benchmarks.simulator.stock_searchers import Stock
from benchmarks.simulator.tables import Entry, Table
from orchestrator.state.search import Placement, Search
from search_spaces.schema import Range
from tests.support.fake_search import make_run, make_search
from trials.errors import InputError
from trials.records.trial_dir import Origin, TrialRecord
from trials.state import TrialState

SPACE = {"learning_rate": Range(low=1e-5, high=1e-1, log=True)}
RATES = [10 ** (-5 + k / 2) for k in range(9)]
SETTING = Setting(budget=3, slots=1, curves=Path("nowhere"), evaluations=3)
MACHINE = Machine(full_trial=600.0, restart=1.0)


def table(losses: Sequence[float]) -> Table:
    """Every entry has these losses, moved up by its distance from the best learning rate."""
    fractions = [(k + 1) / len(losses) for k in range(len(losses))]
    entries = [
        Entry(
            {"learning_rate": rate},
            [(at, loss + 0.1 * abs(k - 5)) for at, loss in zip(fractions, losses, strict=True)],
        )
        for k, rate in enumerate(RATES)
    ]
    return Table(entries, SPACE, {"learning_rate": 1e-4}, 3.0)


def search_of(task: Task, setting: Setting = SETTING, hours: float = 0.5) -> Search:
    search = make_search(recipe_for(DEFAULT_PAIR, task, 0, setting), 3600 * hours, reserve_seconds=30)
    return replace(search, full_tokens=100_000, placement=Placement(1, 1))


def simulated(
    path: Path, search: Search, task: Task, machine: Machine, accidents: Sequence[Accident] = ()
) -> tuple[SimulatedSearch, list[TrialRecord]]:
    run = make_run(path, search)
    search_of_it = SimulatedSearch(run, task, machine, 1, accidents)
    search_of_it.play()
    return search_of_it, [record for record in run.records() if record.origin is not Origin.BASE]


@pytest.mark.parametrize("searcher", [DEFAULT_PAIR, Stock.ASHA.value, Stock.TPE.value, Stock.RANDOM.value])
def test_the_exported_loss_is_the_curves_own_however_noisy_evaluations_are(
    searcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = table([1.0])
    monkeypatch.setattr(regret, "load_task", lambda *_: task)
    played = play(searcher, "made up", 0, replace(SETTING, noise=1.0))
    assert played.loss in [entry.curve[0][1] for entry in task.entries]
    assert {loss for _, loss in played.exported[1:]} <= {entry.curve[0][1] for entry in task.entries}
    assert played.regret == pytest.approx((played.loss - 1.0) / (played.reference.typical - 1.0))
    assert 0 < played.exported[-1][0] <= SETTING.budget + 0.01


def test_evaluations_are_noisy_and_their_rows_scatter_accordingly(tmp_path: Path) -> None:
    task = table([1.0])
    _, records = simulated(tmp_path, search_of(task), task, replace(MACHINE, noise=0.05))
    off = [point.eval_loss - task.nearest({"learning_rate": record.config.hyperparameters.learning_rate}).curve[0][1]
           for record in records for point in record.points]  # fmt: skip
    assert 0.02 < (sum(each**2 for each in off) / len(off)) ** 0.5 < 0.1
    rows = records[0].row_losses()
    assert rows is not None
    assert 0.02 < rows.standard_error < 0.1


def test_the_last_step_ends_short_of_a_trials_tokens(tmp_path: Path) -> None:
    task = table([2.0, 1.0])
    _, records = simulated(tmp_path, search_of(task), task, replace(MACHINE, short=0.01))
    finished = [record for record in records if record.state is TrialState.FINISHED]
    assert finished
    assert all(99_000 <= record.points[-1].tokens_seen < 100_000 for record in finished)


def test_a_search_goes_on_after_restarts(tmp_path: Path) -> None:
    task = table([2.0, 1.5, 1.0])
    accidents = restarts(1, before=35.0, training=1700.0)
    assert len(accidents) == 2
    assert not restarts(2, before=35.0, training=1700.0)
    search = search_of(task)
    played, records = simulated(tmp_path, search, task, MACHINE, accidents)
    account = played.account
    assert account.down_seconds == 2.0
    assert account.full_length >= 1
    assert account.busy_seconds > 0.9 * (3600 * 0.5 - 30 - (account.first_start or 0))
    assert all(len({point.step for point in record.points}) == len(record.points) for record in records)


def test_patience_ends_a_trial_only_where_it_is_asked_for(tmp_path: Path) -> None:
    task = table([1.5, 1.2, 1.0, 1.3, 1.1, 0.9])  # the rate falls: the second half counts only
    setting = replace(SETTING, evaluations=6, patience=2)
    kinds = {}
    for patience in (True, False):
        search = search_of(task, setting)
        _, records = simulated(tmp_path / str(patience), search, task, replace(MACHINE, patience=patience))
        kinds[patience] = {record.state for record in records}
    assert TrialState.EARLY_STOPPED in kinds[True]
    assert TrialState.FINISHED not in kinds[True]
    assert TrialState.EARLY_STOPPED not in kinds[False]
    assert TrialState.FINISHED in kinds[False]


def test_a_trial_that_rises_above_the_base_models_loss_diverges(tmp_path: Path) -> None:
    task = table([7.0, 1.0])
    _, records = simulated(tmp_path, search_of(task), task, MACHINE)
    *ended, cut_off = [record.state for record in records]
    assert set(ended) == {TrialState.DIVERGED}
    assert cut_off is TrialState.OUT_OF_TIME


def test_the_probe_measures_a_speed_that_is_wrong_by_its_factor(tmp_path: Path) -> None:
    task = table([1.0])
    each = {}
    for speed in (1.0, 2.0):
        machine = replace(MACHINE, probe_speed=speed)
        search, _ = simulated(tmp_path / f"{speed:g}", search_of(task, hours=0.2), task, machine)
        prediction = search.controller.search.prediction
        assert prediction is not None
        assert prediction.seconds_per_token is not None
        each[speed] = prediction.seconds_per_token
    assert each[2.0] == pytest.approx(each[1.0] / 2)


def test_a_recipe_has_the_tasks_space_and_start() -> None:
    task = table([1.0])
    recipe = recipe_for(Stock.ASHA, task, 7, SETTING)
    assert dict(recipe.space) == SPACE
    assert recipe.start_values("usual") == {"learning_rate": 1e-4}
    assert recipe.search.seed == 7


def test_searches_with_other_seeds_and_on_other_tasks_propose_other_configurations() -> None:
    seeds = sorted(search_seed(f"lcbench {task}", seed) for task in range(20) for seed in range(20))
    assert seeds == sorted({*seeds})
    assert all(later - earlier > 50 for earlier, later in pairwise(seeds))  # trials of one search add up to 50
    assert search_seed("demo", 3) == search_seed("demo", 3)


def test_an_unknown_searcher_is_one_clear_error() -> None:
    with pytest.raises(InputError, match="nosuch"):
        recipe_for("nosuch/asha", table([1.0]), 0, SETTING)
