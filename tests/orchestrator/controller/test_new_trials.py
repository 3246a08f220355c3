from pathlib import Path
from typing import Any

from orchestrator.controller.new_trials import NewTrials
from orchestrator.scheduling.scheduler import FreezeThawScheduler
from orchestrator.state.run_dir import RunDir
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from tests.support.report_runs import BASE, Told, new_run, write_trial
from trials.records.trial_dir import Origin

START = Told("0001", [2.0], origin=Origin.START, name="usual")


def limited(recipe: Recipe, trials: int | None) -> Recipe:
    return recipe.model_copy(update={"search": recipe.search.model_copy(update={"trials": trials})})


def given_out(new: NewTrials, recipe: Recipe, count: int) -> list[dict[str, Any]]:
    policy = FreezeThawScheduler(recipe.space, recipe.search)
    return [dict(new.next(policy.propose).values) for _ in range(count)]


def folder(path: Path, *trials: Told) -> RunDir:
    run = new_run(path)
    for trial in (BASE, *trials):
        write_trial(run, trial)
    return run


def test_starting_points_come_first_and_whole(small_recipe: Recipe) -> None:
    new = NewTrials(small_recipe, [])
    first, second = (new.next(lambda _: {"learning_rate": 1e-3}) for _ in range(2))
    assert (first.trial_id, first.name) == ("0001", "usual")
    assert first.values["learning_rate"] == small_recipe.start["usual"]["learning_rate"]
    assert set(small_recipe.space) <= set(first.values)
    assert (second.trial_id, second.name, second.values) == ("0002", None, {"learning_rate": 1e-3})


def test_the_same_seed_proposes_the_same_configurations(small_recipe: Recipe) -> None:
    first = given_out(NewTrials(small_recipe, []), small_recipe, 4)
    assert given_out(NewTrials(small_recipe, []), small_recipe, 4) == first
    assert all(one not in first[:index] for index, one in enumerate(first))


def test_ids_and_seeds_continue_from_the_folders(tmp_path: Path, small_recipe: Recipe) -> None:
    run = folder(tmp_path / "run", START, Told("0002", [2.0]))
    seeds: list[int] = []

    def propose(seed: int) -> dict[str, Any]:
        seeds.append(seed)
        return {}

    new = NewTrials(small_recipe, run.records())
    assert [(each.trial_id, each.name) for each in (new.next(propose), new.next(propose))] == [
        ("0003", None),
        ("0004", None),
    ]
    assert seeds == [small_recipe.search.seed + 2, small_recipe.search.seed + 3]


def test_a_starting_point_that_was_never_begun_or_was_lost_is_given_out(tmp_path: Path, small_recipe: Recipe) -> None:
    run = folder(tmp_path / "run", Told("0002", [2.0]))
    new = NewTrials(small_recipe, run.records(), lost={"0001", "0003"})
    again = new.next(lambda _: {})
    assert (again.trial_id, again.name) == ("0004", "usual")


def test_the_limit_counts_configurations_but_not_lost_ones(tmp_path: Path, small_recipe: Recipe) -> None:
    new = NewTrials(limited(small_recipe, 1), [])
    assert new.has_more
    given_out(new, small_recipe, 1)
    assert not new.has_more
    records = folder(tmp_path / "run", START).records()
    assert not NewTrials(limited(small_recipe, 1), records).has_more
    assert NewTrials(limited(small_recipe, 1), [], lost={"0001"}).has_more
    assert NewTrials(limited(small_recipe, 2), records).has_more
    assert NewTrials(limited(small_recipe, None), records).has_more


def test_lists_of_modules_can_be_searched() -> None:
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
    values = given_out(NewTrials(recipe, []), recipe, 12)
    seen = {tuple(recipe.trial_config(each).hyperparameters.target_modules) for each in values}
    assert seen == {("q_proj",), ("q_proj", "k_proj", "v_proj", "o_proj")}
