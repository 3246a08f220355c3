"""The reference of recipe keys is what the models say, and its schema takes what the loader takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from scripts.recipe_reference import DOCS, files, main, schema
from search_spaces.layers import RECIPE_FOLDER, parse_yaml
from search_spaces.loader import load_recipe
from trials.errors import RecipeError

RECIPES = sorted(path for path in RECIPE_FOLDER.rglob("*.yaml"))


def test_both_files_are_up_to_date() -> None:
    for name, content in files().items():
        assert (DOCS / name).read_text(encoding="utf-8") == content, "run python -m scripts.recipe_reference"


def test_the_command_writes_both(tmp_path: Path) -> None:
    assert main(["--to", str(tmp_path)]) == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == files()


def read(path: Path) -> Any:
    return parse_yaml(path.read_text(encoding="utf-8"), path.name)


def problems(recipe: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(schema()).iter_errors(recipe)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_takes_every_recipe_that_ships(path: Path) -> None:
    assert problems(read(path)) == []


MINIMAL = {"extends": "demo"}


@pytest.mark.parametrize(
    "change",
    [
        {"hyperparameters": {"lerning_rate": 1e-4}},
        {"hyperparameters": {"learning_rate": 0}},
        {"hyperparameters": {"scheduler": "cosin"}},
        {"hyperparameters": {"lora_rank": "16"}},
        {"hyperparameter": {}},
        {"space": {"lerning_rate": {"low": 1e-5, "high": 1e-3}}},
        {"space": {"learning_rate": {"low": 1e-5}}},
        {"space": {"learning_rate": [1e-5, 1e-3]}},
        {"start": {"mine": {"lora_rank": 0}}},
        {"data": {"max_length_tokens": 4}},
    ],
    ids=str,
)
def test_what_the_loader_refuses_it_refuses(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **change}), encoding="utf-8")
    with pytest.raises(RecipeError):
        load_recipe(str(path), environ={})
    assert problems(read(path))


def test_an_entry_may_be_taken_away() -> None:
    assert problems({**MINIMAL, "space": {"lora_alpha": None}, "start": {"usual": None}}) == []
