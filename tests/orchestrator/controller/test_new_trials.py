from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.controller.new_trials import NewTrials
from orchestrator.sampling.distributions import distributions
from orchestrator.sampling.search_sampler import SearchSampler
from orchestrator.state.run_dir import RunDir
from orchestrator.surrogate.model import Surrogate
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from tests.support.report_runs import BASE, Told, new_run, write_trial
from trials.records.trial_dir import Origin

START = Told("0001", [2.0], origin=Origin.START, name="usual")


def limited(recipe: Recipe, trials: int | None) -> Recipe:
    return recipe.model_copy(update={"search": recipe.search.model_copy(update={"trials": trials})})


class Fixed:
    """Proposes the same learning rate for every trial, and keeps their numbers."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, Mapping[str, Any]]] = []
        self.proposed: list[int] = []

    def begin(self, number: int, values: Mapping[str, Any]) -> None:
        self.begun.append((number, values))

    def propose(self, number: int) -> Mapping[str, Any] | None:
        self.proposed.append(number)
        return {"learning_rate": 1e-3}


class NotReady(Fixed):
    """Has no proposal yet."""

    def propose(self, number: int) -> Mapping[str, Any] | None:
        return None


def only_rate(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"space": {"learning_rate": recipe.space["learning_rate"]}})


def given_out(new: NewTrials, recipe: Recipe, count: int) -> list[dict[str, Any]]:
    space = distributions(recipe.space)
    sampler = SearchSampler(recipe.search, space, Surrogate(space), print)
    found = [new.next(sampler) for _ in range(count)]
    return [dict(each.values) for each in found if each is not None]


def folder(path: Path, *trials: Told) -> RunDir:
    run = new_run(path)
    for trial in (BASE, *trials):
        write_trial(run, trial)
    return run


def test_starting_points_come_first_and_whole(small_recipe: Recipe) -> None:
    recipe, proposals = only_rate(small_recipe), Fixed()
    new = NewTrials(recipe, [])
    first, second = new.next(proposals), new.next(proposals)
    assert first is not None
    assert second is not None
    assert (first.trial_id, first.name) == ("0001", "usual")
    assert first.values["learning_rate"] == small_recipe.start["usual"]["learning_rate"]
    assert proposals.begun == [(1, {"learning_rate": first.values["learning_rate"]})]
    assert (second.trial_id, second.name, second.values) == ("0002", None, {"learning_rate": 1e-3})


def test_a_trial_whose_proposal_is_not_ready_is_asked_for_again(small_recipe: Recipe) -> None:
    recipe = limited(only_rate(small_recipe), 2)
    new = NewTrials(recipe, [])
    assert new.next(NotReady()) is not None  # the starting point
    assert new.next(NotReady()) is None
    assert new.has_more
    later = new.next(Fixed())
    assert later is not None
    assert later.trial_id == "0002"
    assert not new.has_more


def test_the_same_seed_proposes_the_same_configurations(small_recipe: Recipe) -> None:
    first = given_out(NewTrials(small_recipe, []), small_recipe, 4)
    assert given_out(NewTrials(small_recipe, []), small_recipe, 4) == first
    assert all(one not in first[:index] for index, one in enumerate(first))


def test_ids_continue_from_the_folders(tmp_path: Path, small_recipe: Recipe) -> None:
    run = folder(tmp_path / "run", START, Told("0002", [2.0]))
    proposals = Fixed()
    new = NewTrials(only_rate(small_recipe), run.records())
    found = [new.next(proposals), new.next(proposals)]
    assert [(each.trial_id, each.name) for each in found if each] == [("0003", None), ("0004", None)]
    assert proposals.proposed == [3, 4]


def test_a_starting_point_that_was_never_begun_or_was_lost_is_given_out(tmp_path: Path, small_recipe: Recipe) -> None:
    run = folder(tmp_path / "run", Told("0002", [2.0]))
    new = NewTrials(small_recipe, run.records(), lost={"0001", "0003"})
    again = new.next(Fixed())
    assert again is not None
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
