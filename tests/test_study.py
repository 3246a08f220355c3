import math
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from orchestrator.study import CONSTRAINT, STUDY_NAME, Study
from search_spaces.recipe import load_recipe
from search_spaces.schema import Recipe
from tests.searches import point
from trials.records import EndingKind


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def trials(url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=STUDY_NAME, storage=url).trials


def test_starting_points_come_first_and_whole(url: str, small_recipe: Recipe) -> None:
    study = Study(url, small_recipe)
    first = study.ask()
    assert first.name == "usual"
    assert first.values["learning_rate"] == small_recipe.start["usual"]["learning_rate"]
    assert set(small_recipe.space) <= set(first.values)
    assert study.ask().name is None


def test_the_same_seed_proposes_the_same_configurations(tmp_path: Path, small_recipe: Recipe) -> None:
    def proposals(name: str, losses: list[float]) -> list[object]:
        study = Study(f"sqlite:///{tmp_path / name}", small_recipe)
        asked = []
        for loss in losses:
            suggestion = study.ask()
            study.report(suggestion.number, point(loss, 100))
            study.tell(suggestion.number, EndingKind.FINISHED, loss)
            asked.append(dict(suggestion.values))
        return asked

    first = proposals("a.db", [3.0, 2.0, 2.5, 1.0, 4.0, 1.5, 1.2])
    assert proposals("b.db", [3.0, 2.0, 2.5, 1.0, 4.0, 1.5, 1.2]) == first
    # While configurations are still drawn at random, what came out of the others doesn't matter.
    assert proposals("c.db", [1.0, 1.0, 1.0, 1.0, 1.0]) == first[:5]


def test_each_outcome_is_told_as_what_it_is(url: str, small_recipe: Recipe) -> None:
    study = Study(url, small_recipe)
    outcomes = [
        (EndingKind.FINISHED, TrialState.COMPLETE),
        (EndingKind.EARLY_STOPPED, TrialState.COMPLETE),
        (EndingKind.PRUNED, TrialState.PRUNED),
        (EndingKind.DIVERGED, TrialState.PRUNED),
        (EndingKind.OUT_OF_MEMORY, TrialState.PRUNED),
        (EndingKind.FAILED, TrialState.FAIL),
        (None, TrialState.FAIL),
    ]
    for kind, _ in outcomes:
        number = study.ask().number
        study.report(number, point(2.0, 100))
        study.report(number, point(2.2, 300, best=1.5))
        study.tell(number, kind, 1.5)
    assert [trial.state for trial in trials(url)] == [state for _, state in outcomes]
    assert all(trial.intermediate_values == {100: 2.0, 300: 1.5} for trial in trials(url))
    assert trials(url)[0].value == 1.5
    infeasible = [i for i, trial in enumerate(trials(url)) if trial.constraints.get(CONSTRAINT, 0) > 0]
    assert infeasible == [3, 4]


def test_a_trial_without_any_loss_is_not_complete(url: str, small_recipe: Recipe) -> None:
    study = Study(url, small_recipe)
    study.tell(study.ask().number, EndingKind.PRUNED, None)
    assert trials(url)[0].state is TrialState.PRUNED


def test_what_was_cut_off_is_asked_again_once(url: str, small_recipe: Recipe) -> None:
    study = Study(url, small_recipe)
    start, told, running = study.ask(), study.ask(), study.ask()
    study.tell(told.number, EndingKind.FINISHED, 1.0)
    study.tell(start.number, None, None)
    resumed = Study(url, small_recipe)  # `running` was never told: its process died
    assert {trial.state for trial in trials(url)} == {TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING}
    again = [resumed.ask(), resumed.ask()]
    assert [dict(a.values) for a in again] == [dict(start.values), dict(running.values)]
    assert [a.name for a in again] == ["usual", None]
    for suggestion in again:
        resumed.tell(suggestion.number, EndingKind.FINISHED, 1.0)
    fresh = Study(url, small_recipe).ask()
    assert dict(fresh.values) not in [dict(a.values) for a in again]


def test_the_limit_counts_configurations_not_tries(url: str, small_recipe: Recipe) -> None:
    study = Study(url, small_recipe)
    assert study.has_more(1)  # the starting point is only queued
    study.tell(study.ask().number, None, None)
    assert not study.has_more(1)
    assert study.has_more(2)
    resumed = Study(url, small_recipe)
    assert resumed.has_more(1)  # what was cut off is tried again
    resumed.tell(resumed.ask().number, EndingKind.FINISHED, 1.0)
    assert not resumed.has_more(1)
    assert resumed.has_more(2)
    assert resumed.has_more(None)


def test_a_resumed_search_draws_new_configurations(url: str, small_recipe: Recipe) -> None:
    study = Study(url, small_recipe)
    asked = []
    for _ in range(3):
        suggestion = study.ask()
        asked.append(dict(suggestion.values))
        study.tell(suggestion.number, EndingKind.FINISHED, 1.0)
    resumed = Study(url, small_recipe)
    assert all(dict(resumed.ask().values) not in asked for _ in range(2))


def test_lists_of_modules_can_be_searched(url: str) -> None:
    recipe = load_recipe(
        "demo", ["space.target_modules={choices: [[q_proj], [q_proj, v_proj]]}", "target_modules=[q_proj]"], environ={}
    ).recipe
    # Setting the hyperparameter fixed it: the dimension is gone.
    assert "target_modules" not in recipe.space
    recipe = load_recipe(
        "demo",
        ["space.target_modules={choices: [[q_proj], [q_proj, k_proj, v_proj, o_proj]]}"],
        environ={},
    ).recipe
    study = Study(url, recipe)
    seen = {tuple(recipe.trial_config(study.ask().values).hyperparameters.target_modules) for _ in range(12)}
    assert seen == {("q_proj",), ("q_proj", "k_proj", "v_proj", "o_proj")}


def test_a_region_that_diverges_is_left_alone(url: str) -> None:
    recipe = load_recipe(
        "demo",
        ["search.startup_trials=8", "start.usual=null", "space.lora_rank=null", "space.lora_alpha=null"],
        environ={},
    ).recipe
    study = Study(url, recipe)
    fails = []
    for _ in range(60):
        suggestion = study.ask()
        rate = suggestion.values["learning_rate"]
        diverges = rate > 3e-4  # half of the space, by logarithm; its early losses look best
        loss = 0.5 if diverges else 1.0 + math.log10(rate / 4e-5) ** 2
        fails.append(diverges)
        study.report(suggestion.number, point(loss, 100))
        study.tell(suggestion.number, EndingKind.DIVERGED if diverges else EndingKind.FINISHED, loss)
    assert sum(fails[:8]) >= 2
    assert sum(fails[-30:]) < 0.15 * 30


def test_scores_are_noted_and_decide_nothing(url: str, small_recipe: Recipe) -> None:
    study = Study(url, small_recipe)
    study.record_base(3.0, 0.25)
    number = study.ask().number
    for tokens, score in ((100, 0.5), (200, None), (300, 0.75), (400, None)):
        study.report(number, replace(point(2.0, tokens), score=score))
    study.tell(number, EndingKind.FINISHED, 2.0)
    trial = trials(url)[0]
    assert trial.user_attrs["score"] == 0.75
    assert (trial.value, set(trial.intermediate_values.values())) == (2.0, {2.0})
    opened = optuna.load_study(study_name=STUDY_NAME, storage=url)
    assert opened.user_attrs == {"base_eval_loss": 3.0, "base_score": 0.25}
