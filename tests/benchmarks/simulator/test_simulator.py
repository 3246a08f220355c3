"""The real controller through whole searches: what it leaves on disk, whatever happened in between."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import optuna
import pytest

from benchmarks.simulator import deadlines as random_nights
from benchmarks.simulator.landscapes import Curve
from benchmarks.simulator.simulator import Accident, Account, Machine, SimulatedSearch
from benchmarks.simulator.synthetic_curves import ModelledCurves
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from tests.support.fake_search import START, make_run, make_search
from trials.config import Hyperparameters
from trials.records.trial_dir import Origin, TrialRecord
from trials.state import TrialState

pytestmark = pytest.mark.slow

MACHINE = Machine(full_trial=300.0, base=10.0, start=0.5, restart=40.0)
BOTH_KINDS = [
    Accident(130.0, "trial"),
    Accident(400.0, "driver"),
    Accident(401.0, "driver"),  # while nobody has resumed it yet
    Accident(900.0, "engine"),
    Accident(1300.0, "trial", slot=1),
    Accident(1750.0, "driver"),
]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    settings = ["search.trials=null", "search.full_trials=null", "search.final_share=0"]
    return load_recipe("demo", settings, environ={}).recipe


def night_search(recipe: Recipe, seconds: float = 2400, slots: int = 2) -> Search:
    search = make_search(recipe, seconds, reserve_seconds=60)
    return replace(search, full_tokens=100_000, placement=Placement(slots, slots))


def play(
    path: Path, search: Search, accidents: list[Accident], landscape: ModelledCurves | None = None
) -> tuple[RunDir, Account]:
    run = make_run(path, search)
    assert search.placement is not None
    night = SimulatedSearch(run, landscape or ModelledCurves(3), MACHINE, search.placement.slots, accidents)
    account = night.play()
    assert night.now() <= search.deadline.ends - timedelta(seconds=30)
    return run, account


def trained(run: RunDir) -> list[TrialRecord]:
    return [record for record in run.records() if record.origin is not Origin.BASE]


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> tuple[RunDir, Account]:
    """A search with accidents of all kinds."""
    return play(tmp_path_factory.mktemp("struck") / "run", night_search(recipe), BOTH_KINDS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> tuple[RunDir, Account]:
    """The same search without."""
    return play(tmp_path_factory.mktemp("undisturbed") / "run", night_search(recipe), [])


@pytest.mark.parametrize("played", ["undisturbed", "struck"])
def test_after_the_night_folders_and_study_tell_the_same(played: str, request: pytest.FixtureRequest) -> None:
    run, account = request.getfixturevalue(played)
    records = {record.id: record for record in trained(run)}
    study = optuna.load_study(study_name=None, storage=run.study_url)
    assert [f"{trial.number:04d}" for trial in study.trials[1:]] == sorted(records)
    for trial in study.trials[1:]:
        record = records[f"{trial.number:04d}"]
        assert record.ending is not None
        # No evaluation lost, none counted twice.
        tokens = [point.tokens_seen for point in record.points]
        assert len(tokens) == len(set(tokens))
        assert set(tokens) <= set(trial.intermediate_values)
        assert [point.best_eval_loss for point in record.points] == sorted(
            (point.best_eval_loss for point in record.points), reverse=True
        )
    assert records["0001"].origin is Origin.START
    assert records["0001"].ending == replace(records["0001"].ending, kind=TrialState.FINISHED)  # type: ignore[type-var]
    assert not list(run.path.glob("trials/*/checkpoints"))
    assert account.busy_seconds > 0.95 * 2 * (2340 - (account.first_start or 0) - account.down_seconds)


def test_accidents_cost_what_was_trained_since_the_last_evaluation_and_nothing_else(
    struck: tuple[RunDir, Account],
) -> None:
    run, account = struck
    assert account.lost_fraction < len(BOTH_KINDS) * 2 / 9
    search = run.read_search()
    assert search.deadline.ends == START + timedelta(seconds=2400)
    assert account.down_seconds == pytest.approx(3 * MACHINE.restart, abs=MACHINE.restart)
    # Everything that was on disk when a process died is still there, under the trial's own name or set aside.
    for folder in run.path.glob("trials/*/before-*"):
        kept = {point.tokens_seen for point in next(r for r in trained(run) if r.id == folder.parent.name).points}
        assert kept


class _EverythingFails(ModelledCurves):
    def curve(self, trial_id: str, hyperparameters: Hyperparameters) -> Curve:
        curve = super().curve(trial_id, hyperparameters)
        if trial_id in ("probe", "0001"):
            return replace(curve, ending=TrialState.FINISHED, ends_at=1.0)
        return replace(curve, ending=TrialState.DIVERGED, ends_at=0.05)


def test_a_space_in_which_everything_diverges_still_ends_with_the_starting_point(
    tmp_path: Path, recipe: Recipe
) -> None:
    run, account = play(tmp_path / "run", night_search(recipe, slots=1), [], _EverythingFails(1))
    kinds = Counter(record.ending.kind for record in trained(run) if record.ending)
    assert kinds[TrialState.FINISHED] == 1
    assert account.full_length == 1


class _HalfFails(ModelledCurves):
    """Half of the space, by the logarithm of the learning rate, diverges; the best of it lies beside that."""

    def curve(self, trial_id: str, hyperparameters: Hyperparameters) -> Curve:
        rate = hyperparameters.learning_rate
        points = [(k / 9, 1.0 + math.log10(rate / 1e-4) ** 2 + 0.5 * (1 - k / 9)) for k in range(1, 10)]
        if rate > 3e-4 and trial_id != "probe":
            return Curve(points, ending=TrialState.DIVERGED, ends_at=0.05)
        return Curve(points)


def test_the_search_stays_away_from_where_trials_fail(tmp_path: Path, recipe: Recipe) -> None:
    settings = recipe.search.model_copy(update={"trials": 60})
    search = night_search(recipe.model_copy(update={"search": settings}), seconds=20_000, slots=1)
    run, _ = play(tmp_path / "run", search, [], _HalfFails(1))
    failed = [record.config.hyperparameters.learning_rate > 3e-4 for record in trained(run)]
    assert len(failed) == 60
    assert sum(failed[-30:]) < 0.15 * 30


def test_a_number_of_trials_is_kept_to_and_the_promising_ones_go_on(tmp_path: Path, recipe: Recipe) -> None:
    settings = recipe.search.model_copy(update={"trials": 5})
    search = night_search(recipe.model_copy(update={"search": settings}), seconds=30_000, slots=1)
    run, account = play(tmp_path / "run", search, [])
    assert len(trained(run)) == 5
    best = min(trained(run), key=lambda record: record.best_eval_loss or math.inf)
    assert best.ending is not None
    assert best.ending.kind is TrialState.FINISHED
    assert account.full_length >= 2


@pytest.mark.parametrize("seed", [3, 7, 18])
def test_random_nights_meet_their_deadline_with_a_full_trial(seed: int) -> None:
    outcome = random_nights.play(seed)
    assert outcome.met
    assert outcome.full_length >= outcome.one_fits
    assert outcome.busy >= 0.95
