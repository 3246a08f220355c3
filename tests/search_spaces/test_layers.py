"""Settings under dotted keys: what a key means, what a value is, and who said it last."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_spaces.layers import (
    KNOWN_KEYS,
    RECIPE_FOLDER,
    Layers,
    command_line_settings,
    environment_settings,
    flatten,
    full_key,
    parse_yaml,
    resolve_path,
    split_key,
    unknown_key,
)
from trials.config import Hyperparameters
from trials.errors import RecipeError


@pytest.mark.parametrize("text", ["2e-4", "2E-4", "2.0e-4", ".2e-3", "0.0002", "+2e-4"])
def test_a_number_in_any_spelling_is_a_number(text: str) -> None:
    assert parse_yaml(text, "here") == pytest.approx(2e-4)
    assert isinstance(parse_yaml(text, "here"), float)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("true", True), ("null", None), ("", None), ("9h", "9h"), ("1e", "1e"), ("[a, 1]", ["a", 1])],
)
def test_other_values_are_yaml(text: str, value: object) -> None:
    assert parse_yaml(text, "here") == value


def test_broken_yaml_is_named_by_its_source() -> None:
    with pytest.raises(RecipeError, match=r"night\.yaml is no YAML: .* line 1, column 4.* Mend it\."):
        parse_yaml("a: [1", "night.yaml")


def test_a_key_that_is_there_twice_is_an_error() -> None:
    text = "space:\n  lora_rank: {choices: [8]}\n  lora_rank: {choices: [16]}\n"
    with pytest.raises(RecipeError, match=r"night\.yaml is no YAML: lora_rank is there twice .* line 3, column 3"):
        parse_yaml(text, "night.yaml")
    assert parse_yaml("a: {x: 1}\nb: {x: 1}", "night.yaml") == {"a": {"x": 1}, "b": {"x": 1}}


def test_a_mapping_may_override_what_it_merges_in() -> None:
    text = """
short: &short {learning_rate: 1.0e-4, lora_rank: 16}
long: &long
  <<: *short
  lora_rank: 32
other: &other {weight_decay: 0.1, lora_rank: 64}
all: {<<: [*long, *other], weight_decay: 0.2}
again: {<<: *long, lora_rank: 8}
both: {<<: *long, <<: *other, lora_alpha: 1}
"""
    found = parse_yaml(text, "night.yaml")
    assert found["long"] == {"learning_rate": 1e-4, "lora_rank": 32}
    assert found["all"] == {"learning_rate": 1e-4, "lora_rank": 32, "weight_decay": 0.2}
    assert found["again"] == {"learning_rate": 1e-4, "lora_rank": 8}
    assert found["both"] == {"learning_rate": 1e-4, "lora_rank": 64, "weight_decay": 0.1, "lora_alpha": 1}


@pytest.mark.parametrize(
    "text",
    ["a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}", "a: &a {x: 1, x: 2}\nb: {<<: *a}", "b: {<<: {x: 1, x: 2}, x: 3}"],
)
def test_what_is_there_twice_beside_a_merge_is_an_error_still(text: str) -> None:
    with pytest.raises(RecipeError, match=r"night\.yaml is no YAML: [xy] is there twice"):
        parse_yaml(text, "night.yaml")


def test_a_character_that_json_escapes_in_two_halves_is_one() -> None:
    assert parse_yaml('"\\ud83d\\ude42"', "here") == "\U0001f642"
    with pytest.raises(RecipeError, match="half of a character"):
        parse_yaml('"\\ud83d"', "here")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.getcwd []", "!!python/name:os.system"])
def test_a_recipe_runs_no_code(text: str) -> None:
    with pytest.raises(RecipeError, match="is no YAML"):
        parse_yaml(text, "night.yaml")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rate", "hyperparameters.learning_rate"),
        ("hyperparameters.learning_rate", "hyperparameters.learning_rate"),
        ("budget", "search.budget"),
        ("max_length_tokens", "data.max_length_tokens"),
        ("space.learning_rate", "space.learning_rate"),
        ("space.learning_rate.low", "space.learning_rate.low"),
        ("start.mine.lora_rank", "start.mine.lora_rank"),
        ("description", "description"),
    ],
)
def test_a_key_may_be_short_where_it_is_clear(key: str, meant: str) -> None:
    assert full_key(key, "--set") == meant


@pytest.mark.parametrize("name", Hyperparameters.model_fields)
def test_every_hyperparameter_can_be_set_by_its_name(name: str) -> None:
    assert full_key(name, "--set") == f"hyperparameters.{name}"


def test_no_short_key_is_ambiguous() -> None:
    others = [key for key in KNOWN_KEYS if not key.startswith("space.") and key != "search.scheduler"]
    shorts = [key.rpartition(".")[2] for key in others]
    assert len(shorts) == len(set(shorts))


def test_a_short_key_is_the_hyperparameter_s_where_the_search_has_one_of_that_name() -> None:
    assert full_key("search.scheduler", "--set") == "search.scheduler"
    assert full_key("scheduler", "--set") == "hyperparameters.scheduler"


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learning_rat", "hyperparameters.learning_rate"),
        ("hyperparameters.lora_rnk", "hyperparameters.lora_rank"),
        ("search.budgit", "search.budget"),
        ("budgt", "search.budget"),
        ("space.lora_alfa", "space.lora_alpha"),
        ("serach.budget", "search.budget"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, near: str) -> None:
    assert unknown_key(key) == f"unknown key {key!r}; the nearest known one is {near!r}."


def test_where_nothing_is_near_all_are_named() -> None:
    assert "known are: " in unknown_key("zzzzzz")
    assert "learning_rate" in unknown_key("zzzzzz")


def test_the_environment_gives_settings_and_their_variable() -> None:
    environ = {"ORCHESTRATOR__SEARCH__BUDGET": "5m", "ORCHESTRATOR__LEARNING_RATE": "2e-4", "HOME": "/root"}
    assert environment_settings(environ) == {
        "search.budget": ("5m", "environment (ORCHESTRATOR__SEARCH__BUDGET)"),
        "hyperparameters.learning_rate": (2e-4, "environment (ORCHESTRATOR__LEARNING_RATE)"),
    }


def test_an_unknown_variable_is_an_error_that_names_it() -> None:
    with pytest.raises(RecipeError, match="ORCHESTRATOR__SPEED: unknown key 'speed'"):
        environment_settings({"ORCHESTRATOR__SPEED": "9"})


def test_the_command_line_gives_settings_and_the_last_stands() -> None:
    found = command_line_settings(["lora_rank=4", "description=a=b", "lora_rank=8"])
    assert found == {"hyperparameters.lora_rank": (8, "--set"), "description": ("a=b", "--set")}


@pytest.mark.parametrize("assignment", ["learning_rate", "=1", ""])
def test_anything_but_key_and_value_is_refused(assignment: str) -> None:
    with pytest.raises(RecipeError, match="is not of the form key=value"):
        command_line_settings([assignment])


def test_flat_and_back() -> None:
    nested = {"search": {"budget": "9h"}, "space": {"lora_rank": {"choices": [4, 8]}}, "start": {}}
    flat = flatten(nested)
    assert flat == {"search.budget": "9h", "space.lora_rank.choices": [4, 8], "start": {}}
    layers = Layers()
    for key, value in flat.items():
        layers.put(key, value, "here")
    assert layers.nested() == nested


def test_a_later_layer_replaces_a_key_with_all_that_was_under_it() -> None:
    layers = Layers()
    layers.put("space.lora_rank.low", 4, "a")
    layers.put("space.lora_rank.high", 8, "a")
    layers.put("space.lora_rank_max", 1, "a")
    layers.put("space.lora_rank", {"choices": [1]}, "b")
    assert layers.sources == {"space.lora_rank_max": "a", "space.lora_rank": "b"}


def test_null_takes_an_entry_of_space_or_start_away_and_is_a_value_elsewhere() -> None:
    layers = Layers()
    layers.put("space.lora_rank.choices", [4], "a")
    layers.put("space.lora_rank", None, "b")
    layers.put("data.test", None, "b")
    assert layers.values == {"data.test": None}


def test_paths_are_those_of_who_names_them(in_tmp_path: Path) -> None:
    mine, recipes = in_tmp_path / "mine", in_tmp_path / "recipes"
    for folder in (mine, recipes):
        folder.mkdir()
        (folder / "both.jsonl").touch()
    (in_tmp_path / "here.jsonl").touch()
    assert resolve_path("both.jsonl", recipes) == str(recipes / "both.jsonl")
    assert resolve_path("both.jsonl[:5]", recipes) == f"{recipes / 'both.jsonl'}[:5]"
    assert resolve_path("here.jsonl", recipes) == str(in_tmp_path / "here.jsonl")  # from the current folder
    assert resolve_path("../gone.jsonl", mine / "sub") == str(mine / "gone.jsonl")
    assert resolve_path("./gone", mine) == str(mine / "gone")
    assert resolve_path("/gone", mine) == "/gone"
    assert resolve_path("~/gone", mine) == str(Path("~/gone").expanduser())


@pytest.mark.parametrize("name", ["mistralai/Mistral-7B-v0.1", "owner/name:test[:800]"])
def test_names_on_the_hub_stay_as_they_are(tmp_path: Path, name: str) -> None:
    assert resolve_path(name, tmp_path) == name


def test_the_data_of_a_recipe_that_ships_with_the_project_is_the_user_s(in_tmp_path: Path) -> None:
    found = resolve_path("data/train.jsonl", RECIPE_FOLDER)
    assert found == str(in_tmp_path / "data/train.jsonl")


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("search.budget", "9h", ("search", "budget")),
        ("space.lora_rank.low", 4, ("space", "lora_rank", "low")),
        ("start.usual.lora_rank", 4, ("start", "usual", "lora_rank")),
        ("start.usual", {"lora_rank": 4}, ("start", "usual")),
        ("start.usual", None, ("start", "usual")),
        ("start.lr2.5e-4.lora_rank", 4, ("start", "lr2.5e-4", "lora_rank")),
        ("start.lr2.5e-4.lora_rank", None, ("start", "lr2.5e-4", "lora_rank")),
        ("start.lr2.5e-4.lora_rnk", 4, ("start", "lr2.5e-4", "lora_rnk")),
        ("start.lr2.5e-4", {"lora_rank": 4}, ("start", "lr2.5e-4")),
        ("start.lr2.5e-4", None, ("start", "lr2.5e-4")),
        ("start.v1.0.1", {}, ("start", "v1.0.1")),
        ("start.lora_rank", {"lora_rank": 4}, ("start", "lora_rank")),
    ],
)
def test_the_parts_of_a_key(key: str, value: object, parts: tuple[str, ...]) -> None:
    assert split_key(key, value) == parts


def test_a_starting_point_is_dropped_without_its_namesakes() -> None:
    layers = Layers()
    for name in ("a", "a.5", "a.5.1"):
        layers.put(f"start.{name}.lora_rank", 4, "here")
    assert layers.starting_points() == {"a", "a.5", "a.5.1"}
    layers.put("start.a.5", None, "there")
    assert layers.nested() == {"start": {"a": {"lora_rank": 4}, "a.5.1": {"lora_rank": 4}}}
    layers.drop("start.a")
    assert layers.starting_points() == {"a.5.1"}
