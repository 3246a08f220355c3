from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from orchestrator.controller.study import CONSTRAINT, STUDY_NAME, StudyRecorder, Suggestion
from orchestrator.scheduling.scheduler import FreezeThawScheduler
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from tests.support.fake_search import point
from trials.state import TrialState


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def ask(study: StudyRecorder, recipe: Recipe) -> Suggestion:
    policy = FreezeThawScheduler(recipe.space, recipe.search)
    suggestion = study.ask(policy.propose)
    study.begin(suggestion)
    return suggestion


def trials(url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=STUDY_NAME, storage=url).trials


def test_starting_points_come_first_and_whole(url: str, small_recipe: Recipe) -> None:
    study = StudyRecorder(url, small_recipe)
    first = ask(study, small_recipe)
    assert first.name == "usual"
    assert first.values["learning_rate"] == small_recipe.start["usual"]["learning_rate"]
    assert set(small_recipe.space) <= set(first.values)
    assert ask(study, small_recipe).name is None


def test_the_same_seed_proposes_the_same_configurations(tmp_path: Path, small_recipe: Recipe) -> None:
    def proposals(name: str) -> list[object]:
        study = StudyRecorder(f"sqlite:///{tmp_path / name}", small_recipe)
        return [dict(ask(study, small_recipe).values) for _ in range(4)]

    first = proposals("a.db")
    assert proposals("b.db") == first
    assert all(one not in first[:index] for index, one in enumerate(first))


def test_each_outcome_is_told_as_what_it_is(url: str, small_recipe: Recipe) -> None:
    study = StudyRecorder(url, small_recipe)
    outcomes = [
        (TrialState.FINISHED, OptunaState.COMPLETE),
        (TrialState.EARLY_STOPPED, OptunaState.COMPLETE),
        (TrialState.PRUNED, OptunaState.PRUNED),
        (TrialState.DIVERGED, OptunaState.PRUNED),
        (TrialState.OUT_OF_MEMORY, OptunaState.PRUNED),
        (TrialState.FAILED, OptunaState.FAIL),
    ]
    for kind, _ in outcomes:
        number = ask(study, small_recipe).number
        study.report(number, point(2.0, 100))
        study.report(number, point(2.2, 300, best=1.5))
        study.record_end(number, kind, 1.5)
    assert [trial.state for trial in trials(url)] == [state for _, state in outcomes]
    assert all(trial.intermediate_values == {100: 2.0, 300: 1.5} for trial in trials(url))
    assert trials(url)[0].value == 1.5
    infeasible = [i for i, trial in enumerate(trials(url)) if trial.constraints.get(CONSTRAINT, 0) > 0]
    assert infeasible == [3, 4]


def test_a_trial_without_any_loss_is_not_complete(url: str, small_recipe: Recipe) -> None:
    study = StudyRecorder(url, small_recipe)
    study.record_end(ask(study, small_recipe).number, TrialState.PRUNED, None)
    assert trials(url)[0].state is OptunaState.PRUNED


def test_what_ran_when_the_search_was_cut_off_is_still_open(url: str, small_recipe: Recipe) -> None:
    study = StudyRecorder(url, small_recipe)
    start, told, running = (ask(study, small_recipe) for _ in range(3))
    study.record_end(told.number, TrialState.FINISHED, 1.0)
    study.report(running.number, point(2.0, 100))
    resumed = StudyRecorder(url, small_recipe)  # the process died
    assert [resumed.is_open(each.number) for each in (start, told, running)] == [True, False, True]
    resumed.report(running.number, point(2.5, 100))  # as it was told before: it counts once
    resumed.report(running.number, point(1.5, 300))
    resumed.record_end(running.number, TrialState.FINISHED, 1.5)
    assert trials(url)[2].intermediate_values == {100: 2.0, 300: 1.5}
    unbegun = resumed.unbegun([told.number, running.number])
    assert [(each.number, each.name, dict(each.values)) for each in unbegun] == [(0, "usual", dict(start.values))]


def test_starting_points_that_were_not_queued_in_time_are(url: str, small_recipe: Recipe) -> None:
    without = small_recipe.model_copy(update={"start": {}})
    StudyRecorder(url, without)
    assert ask(StudyRecorder(url, small_recipe), small_recipe).name == "usual"


def test_the_limit_counts_configurations(url: str, small_recipe: Recipe) -> None:
    study = StudyRecorder(url, small_recipe)
    assert study.has_more(1)  # the starting point is only queued
    ask(study, small_recipe)
    assert not study.has_more(1)
    assert study.has_more(2)
    resumed = StudyRecorder(url, small_recipe)
    assert not resumed.has_more(1)
    assert resumed.has_more(2)
    assert resumed.has_more(None)


def test_a_resumed_search_draws_new_configurations(url: str, small_recipe: Recipe) -> None:
    study = StudyRecorder(url, small_recipe)
    asked = []
    for _ in range(3):
        suggestion = ask(study, small_recipe)
        asked.append(dict(suggestion.values))
        study.record_end(suggestion.number, TrialState.FINISHED, 1.0)
    resumed = StudyRecorder(url, small_recipe)
    assert all(dict(ask(resumed, small_recipe).values) not in asked for _ in range(2))


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
    study = StudyRecorder(url, recipe)
    seen = {tuple(recipe.trial_config(ask(study, recipe).values).hyperparameters.target_modules) for _ in range(12)}
    assert seen == {("q_proj",), ("q_proj", "k_proj", "v_proj", "o_proj")}


def test_scores_are_noted_and_decide_nothing(url: str, small_recipe: Recipe) -> None:
    study = StudyRecorder(url, small_recipe)
    study.record_base(3.0, 0.25)
    number = ask(study, small_recipe).number
    for tokens, score in ((100, 0.5), (200, None), (300, 0.75), (400, None)):
        study.report(number, replace(point(2.0, tokens), score=score))
    study.record_end(number, TrialState.FINISHED, 2.0)
    trial = trials(url)[0]
    assert trial.user_attrs["score"] == 0.75
    assert (trial.value, set(trial.intermediate_values.values())) == (2.0, {2.0})
    opened = optuna.load_study(study_name=STUDY_NAME, storage=url)
    assert opened.user_attrs == {"base_eval_loss": 3.0, "base_score": 0.25}
