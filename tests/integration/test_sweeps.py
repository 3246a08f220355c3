"""The space in other tools' syntax: refused, with the line to write in its place, which works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search_spaces.layers import parse_yaml
from search_spaces.loader import load_recipe
from search_spaces.schema import Choices, Range
from search_spaces.sweeps import written_here
from trials.errors import RecipeError

LOG = Range(low=1e-5, high=1e-3, log=True)


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ({"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3}, LOG),
        ({"distribution": "uniform", "min": 1e-5, "max": 1e-3}, Range(low=1e-5, high=1e-3)),
        ({"min": 1e-5, "max": 1e-3}, Range(low=1e-5, high=1e-3)),
        ({"type": "loguniform", "low": 1e-5, "high": 1e-3}, LOG),
        ({"Distribution": "LOG_UNIFORM_VALUES", "Min": 1e-5, "Max": 1e-3}, LOG),
        ({"lower": 1e-5, "upper": 1e-3, "log": True}, LOG),
        ("tune.loguniform(1e-5, 1e-3)", LOG),
        ("ray.tune.loguniform(0.00001, 1e-3)", LOG),
        ("loguniform(1e-5,1e-3)", LOG),
        ('trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True)', LOG),
        ("hp.loguniform('lr', 1e-5, 1e-3)", LOG),
        ({"values": [1e-5, 1e-3]}, Choices(choices=(1e-5, 1e-3))),
        ({"grid_search": [1e-5, 1e-3]}, Choices(choices=(1e-5, 1e-3))),
        ([1e-5, 1e-3], Choices(choices=(1e-5, 1e-3))),
        ("tune.choice([1e-5, 1e-3])", Choices(choices=(1e-5, 1e-3))),
        ("hp.choice('lr', [1e-5, 1e-3])", Choices(choices=(1e-5, 1e-3))),
    ],
    ids=str,
)
def test_the_line_that_is_given_means_the_same(value: Any, meant: Range | Choices) -> None:
    said = written_here("learning_rate", value)
    assert said is not None
    assert said.startswith("space.learning_rate=")
    line = said.split("`")[1]
    ((name, dimension),) = parse_yaml(line, "line").items()
    assert (name, type(meant).model_validate(dimension)) == ("learning_rate", meant)
    found = load_recipe("demo", [f"space.learning_rate={line.partition(': ')[2]}", "start.usual=null"], environ={})
    assert found.recipe.space["learning_rate"] == meant


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"value": 1e-4}, "is no part of the space; set hyperparameters.learning_rate to 0.0001"),
        (1e-4, "is no part of the space; set hyperparameters.learning_rate to 0.0001"),
        ({"distribution": "q_log_uniform_values", "q": 8, "min": 8, "max": 64}, "there are no steps"),
        ("tune.qrandint(8, 64, 8)", "`learning_rate: {low: 8, high: 64}`, or with `choices` where only some"),
        ({"low": 1, "high": 9, "step": 2}, "there are no steps"),
        ({"distribution": "log_uniform", "min": -11, "max": -7}, "give the values themselves, not their logarithms"),
        ({"distribution": "normal", "mu": 0, "sigma": 1}, "give what is varied as {low: "),
        ({"min": 1e-5}, "give what is varied as {low: "),
        (None, "give what is varied as {low: "),
    ],
    ids=str,
)
def test_what_has_no_such_line_is_explained(value: Any, says: str) -> None:
    assert says in (written_here("learning_rate", value) or "")


@pytest.mark.parametrize("value", [{"low": 1, "high": 2}, {"choices": [1]}, {"low": 1, "hihg": 2}, {"choises": [1]}])
def test_our_own_syntax_is_the_schemas_affair(value: Any) -> None:
    assert written_here("learning_rate", value) is None


def test_all_dimensions_are_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "extends: demo\nspace:\n  learning_rate: {min: 1.0e-5, max: 1.0e-3}\n  lora_rank: {values: [8, 16]}\n"
    )
    with pytest.raises(RecipeError) as error:
        load_recipe(str(file), environ={})
    first, *rest = str(error.value).splitlines()
    assert first == "recipe 'sweep':"
    assert [line.rpartition("write it as ")[2] for line in rest] == [
        "`learning_rate: {low: 1e-05, high: 0.001}`",
        "`lora_rank: {choices: [8, 16]}`",
    ]


def test_the_section_of_a_sweep_file_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("extends: demo\nparameters:\n  learning_rate: {min: 1.0e-5, max: 1.0e-3}\n")
    with pytest.raises(
        RecipeError, match="unknown section 'parameters'; what the search varies is the section 'space'"
    ):
        load_recipe(str(file), environ={})
