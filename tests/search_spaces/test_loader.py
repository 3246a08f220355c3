"""Recipes: default < what it extends < recipe < environment < --set, and where each value came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_spaces.loader import RECIPE_FOLDER, load_recipe, recipe_file, recipe_names
from search_spaces.schema import Choices, Range, Recipe, SearchSettings
from trials.errors import RecipeError


def _write(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def chain(tmp_path: Path) -> str:
    """A recipe that extends one that extends the demo."""
    _write(tmp_path / "parent.yaml", "extends: demo\nsearch: {budget: 1h, rungs: 1, seed: 5}\n")
    return _write(tmp_path / "child.yaml", "extends: parent.yaml\nsearch: {rungs: 3, seed: 6, samples: 1}\n")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_is_valid(name: str) -> None:
    assert load_recipe(name, environ={}).recipe.name == name


def test_each_layer_stands_above_the_one_before(chain: str) -> None:
    resolved = load_recipe(chain, ["samples=9"], {"ORCHESTRATOR__SEARCH__SEED": "7", "ORCHESTRATOR__SAMPLES": "8"})
    search, sources = resolved.recipe.search, resolved.sources
    demo = load_recipe("demo", environ={}).recipe.search
    assert search.keep_adapters == SearchSettings().keep_adapters
    assert (search.reserve, search.budget, search.rungs, search.seed, search.samples) == (demo.reserve, "1h", 3, 7, 9)
    assert "search.keep_adapters" not in sources
    assert sources["search.concurrent_trials"] == "demo.yaml"
    assert sources["search.budget"] == "parent.yaml"
    assert sources["search.rungs"] == "child.yaml"
    assert sources["search.seed"] == "environment (ORCHESTRATOR__SEARCH__SEED)"
    assert sources["search.samples"] == "--set"


def test_a_number_with_an_exponent_is_a_number() -> None:
    recipe = load_recipe("demo", ["learning_rate=2e-4"], {}).recipe
    assert recipe.hyperparameters.learning_rate == 2e-4


@pytest.mark.parametrize("environ", [{}, {"ORCHESTRATOR__LORA_RANK": "8"}])
def test_a_hyperparameter_that_is_set_is_searched_no_more(environ: dict[str, str]) -> None:
    before = load_recipe("demo", environ={}).recipe
    assert "lora_rank" in before.space
    assert any("lora_rank" in values for values in before.start.values())
    recipe = load_recipe("demo", [] if environ else ["lora_rank=8"], environ).recipe
    assert set(recipe.space) == set(before.space) - {"lora_rank"}
    assert recipe.hyperparameters.lora_rank == 8
    assert not any("lora_rank" in values for values in recipe.start.values())
    for name in recipe.start:
        assert recipe.trial_config(recipe.start_values(name)).hyperparameters.lora_rank == 8


def test_a_part_of_a_dimension_can_be_set() -> None:
    recipe = load_recipe("demo", ["space.learning_rate.high=5e-3"], {}).recipe
    dimension = recipe.space["learning_rate"]
    assert isinstance(dimension, Range)
    assert (dimension.high, dimension.log) == (5e-3, True)


def test_a_dimension_and_a_starting_point_can_be_added_and_taken_away() -> None:
    assignments = ["space.lora_rank=null", "space.scheduler={choices: [cosine, linear]}", "start.usual=null"]
    recipe = load_recipe("demo", [*assignments, "start.mine.learning_rate=1e-3"], {}).recipe
    assert "lora_rank" not in recipe.space
    assert recipe.space["scheduler"] == Choices(choices=("cosine", "linear"))
    assert dict(recipe.start) == {"mine": {"learning_rate": 1e-3}}


def test_a_file_replaces_a_dimension_as_a_whole(tmp_path: Path) -> None:
    text = "extends: demo\nspace: {learning_rate: {low: 1e-4, high: 1e-3}, lora_dropout: null}\n"
    recipe = load_recipe(_write(tmp_path / "mine.yaml", text), environ={}).recipe
    assert recipe.space["learning_rate"] == Range(low=1e-4, high=1e-3, log=False)
    assert "lora_dropout" not in recipe.space
    assert "lora_rank" in recipe.space


def test_paths_are_relative_to_the_file_that_names_them(in_tmp_path: Path) -> None:
    _write(in_tmp_path / "a" / "parent.yaml", "extends: demo\ndata: {train: t.jsonl}\n")
    child = _write(in_tmp_path / "b" / "child.yaml", "extends: ../a/parent.yaml\ndata: {eval: ../e.jsonl}\n")
    data = load_recipe(child, ["data.test=x.jsonl"], {}).recipe.data
    assert data.train == str(in_tmp_path / "a" / "t.jsonl")
    assert data.eval == str(in_tmp_path / "e.jsonl")
    assert data.test == str(in_tmp_path / "x.jsonl")


def test_the_demo_needs_nothing_from_outside() -> None:
    recipe = load_recipe("demo", environ={}).recipe
    for path in (recipe.model.name, recipe.data.train, recipe.data.eval, recipe.data.test):
        assert Path(str(path)).is_relative_to(RECIPE_FOLDER)
        assert Path(str(path)).exists()


def test_a_name_on_the_hub_stays_a_name(in_tmp_path: Path) -> None:
    recipe = load_recipe("demo", ["model.name=mistralai/Mistral-7B-v0.1"], {}).recipe
    assert recipe.model.name == "mistralai/Mistral-7B-v0.1"


def test_a_circle_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "a.yaml", "extends: b.yaml\n")
    circle = _write(tmp_path / "b.yaml", "extends: a.yaml\n")
    with pytest.raises(RecipeError, match=r"b\.yaml extends itself by way of .*b\.yaml -> .*a\.yaml\. Break"):
        load_recipe(circle, environ={})


def test_names_and_files(tmp_path: Path) -> None:
    assert recipe_file("demo") == RECIPE_FOLDER / "demo.yaml"
    mine = _write(tmp_path / "mine.yml", "extends: demo\n")
    assert load_recipe(mine, environ={}).recipe.name == "mine"
    with pytest.raises(RecipeError, match="unknown recipe 'dmo'; did you mean 'demo'"):
        recipe_file("dmo")
    with pytest.raises(RecipeError, match=r"no recipe file .*gone\.yaml"):
        recipe_file(str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: demo\nname: mine\n", "unknown section 'name'; a recipe is named by its file"),
        ("extends: demo\nhyperparameters: {learning_rate: fast}\n", r"'fast' \(from mine\.yaml\) is not allowed"),
        ("extends: demo\nsearch: {seed: -1}\n", r"search\.seed=-1 \(from mine\.yaml\) is not allowed"),
        ("extends: demo\ndata: 5\n", r"data=5 \(from mine\.yaml\) is not allowed"),
        ("extends: demo\nspace: 5\n", r"space=5 \(from mine\.yaml\) is not allowed"),
        ("extends: demo\nspace: {learning_rate: 5}\n", r"space\.learning_rate=5 \(from mine\.yaml\) is not allowed"),
        ("model: {name: demo/base}\n", r"data is missing\. Give it in the recipe"),
        ("just text\n", "must hold a mapping of settings, not str"),
    ],
)
def test_what_a_file_must_not_say(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(_write(tmp_path / "mine.yaml", text), environ={})


def test_a_recipe_is_the_same_after_json(small_recipe: Recipe) -> None:
    assert Recipe.model_validate_json(small_recipe.model_dump_json()) == small_recipe


def test_a_starting_point_may_have_dots_in_its_name(tmp_path: Path) -> None:
    text = "extends: demo\nstart:\n  lr2.5e-4: {learning_rate: 2.5e-4}\n  Big.One__X: {lora_rank: 32}\n"
    file = _write(tmp_path / "mine.yaml", text)
    recipe = load_recipe(file, environ={}).recipe
    assert recipe.start["lr2.5e-4"] == {"learning_rate": 2.5e-4}
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assignments = ["start.lr2.5e-4.lora_rank=8", "start.usual=null", "start.v1.0={lora_rank: 4}", "start.v1.1={}"]
    environ = {
        "ORCHESTRATOR__START__LR2.5E-4__LORA_ALPHA": "16",
        "ORCHESTRATOR__START__BIG.ONE__X__LORA_ALPHA": "64",
        "ORCHESTRATOR__START__NEW__LORA_RANK": "16",
    }
    changed = load_recipe(file, assignments, environ).recipe
    assert changed.start == {
        "lr2.5e-4": {"learning_rate": 2.5e-4, "lora_rank": 8, "lora_alpha": 16},
        "Big.One__X": {"lora_rank": 32, "lora_alpha": 64},
        "new": {"lora_rank": 16},
        "v1.0": {"lora_rank": 4},
        "v1.1": {},
    }


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("start.lr2.5e-4.lora_rnk=8", r"start\.lr2\.5e-4: unknown hyperparameter 'lora_rnk'"),
        ("start.lr2.5e-4.lora_rank=5", r"start\.lr2\.5e-4: lora_rank=5 lies outside space\.lora_rank"),
    ],
)
def test_what_is_wrong_in_a_starting_point_with_dots(assignment: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", [assignment], environ={})


def test_all_linear_is_a_list_of_one_until_the_model_is_known() -> None:
    assignments = [
        "space.target_modules={choices: [all-linear, [q_proj], [all-linear, lm_head]]}",
        "start.all.target_modules=all-linear",
        "start.some.target_modules=[q_proj]",
        "start.usual.target_modules=[q_proj]",
    ]
    recipe = load_recipe("demo", assignments, environ={}).recipe
    assert recipe.all_targets() == {*recipe.hyperparameters.target_modules, "all-linear", "q_proj", "lm_head"}
    assert recipe.start_values("all")["target_modules"] == ["all-linear"]
    assert recipe.trial_config({"target_modules": "all-linear"}).hyperparameters.target_modules == ("all-linear",)
    named = recipe.with_targets(lambda targets: ("a", "b") if "all-linear" in targets else tuple(targets))
    assert named.space["target_modules"] == Choices(choices=(["a", "b"], ["q_proj"]))
    assert named.start["all"]["target_modules"] == ["a", "b"]
    assert "target_modules" not in load_recipe("demo", environ={}).recipe.with_targets(tuple).start["usual"]


def test_one_name_is_no_list_of_names() -> None:
    with pytest.raises(
        RecipeError, match=r"'q_proj' .*: give a list of names, such as \[q_proj, v_proj\], or all-linear"
    ):
        load_recipe("demo", ["target_modules=q_proj"], environ={})
