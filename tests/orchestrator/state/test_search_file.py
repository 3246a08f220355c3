"""search.json: what is written is read back, other versions' files too, and an error says where it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from orchestrator.state.search_file import hardware, versions
from search_spaces.loader import load_recipe
from tests.golden import HERE, NAMES
from tests.support.fake_search import make_run, make_search
from trials.errors import RunFolderError

ABSENT = object()


def test_a_search_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    recipe = load_recipe(
        "demo", ["space.target_modules={choices: [[q_proj, k_proj, v_proj, o_proj], [q_proj]]}"], environ={}
    ).recipe
    search = make_search(recipe)
    assert make_run(tmp_path / "run", search).read_search() == search
    content = json.loads((tmp_path / "run" / "search.json").read_text())
    assert content["deadline"].endswith("+00:00")
    assert content["versions"]["optuna"]
    assert content["sources"] == {"search.seed": "--set"}


def test_where_the_trials_run_is_on_record(run: RunDir, search: Search) -> None:
    search = replace(search, placement=Placement(engines=2, slots=6), shortened=0.5)
    run.write_search(search)
    content = json.loads((run.path / "search.json").read_text())
    assert (content["engines"], content["slots"]) == (2, 6)
    assert run.read_search() == search


def test_an_earlier_version_s_trials_without_engines_are_read_as_workers(run: RunDir, search: Search) -> None:
    run.write_search(replace(search, placement=Placement(engines=0, slots=3)))
    assert run.read_search().placement == Placement(engines=3, slots=3)


def test_how_many_processes_train_a_trial_is_on_record(run: RunDir, search: Search) -> None:
    run.write_search(replace(search, ranks=2))
    assert run.read_search().ranks == 2
    path = run.path / "search.json"
    content = json.loads(path.read_text())
    assert content.pop("ranks") == 2
    path.write_text(json.dumps(content))  # as an earlier version wrote it
    assert run.read_search() == search


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_values_are_written_as_by_earlier_versions(name: str, tmp_path: Path) -> None:
    before = json.loads((HERE / name / "search.json").read_text())
    (tmp_path / "search.json").write_text(json.dumps({**before, "of_a_later_version": 1}))
    RunDir(tmp_path).write_search(RunDir(tmp_path).read_search())
    after = json.loads((tmp_path / "search.json").read_text())
    later = {"final_seconds": 0.0, "alone_seconds_per_token": None, "slots_of_use": None}
    assert {key: after.pop(key) for key in later} == later
    assert after.keys() == before.keys()
    grown = ("recipe", "versions", "hardware")
    assert {**after, **dict.fromkeys(grown)} == {**before, **dict.fromkeys(grown)}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"started": "2026-01-01T00:00:00"}, "started: Input should have timezone info"),
        ({"deadline": ABSENT}, "deadline: Field required"),
        ({"engines": -1}, "engines: Input should be greater than or equal to 0"),
        ({"full_tokens": "many"}, "full_tokens: Input should be a valid integer"),
        ({"base": {}}, "base.model_type: Field required"),
        ({"recipe": ABSENT}, "recipe: Field required"),
    ],
)
def test_an_error_says_where_it_is(run: RunDir, change: dict[str, Any], where: str) -> None:
    path = run.path / "search.json"
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ABSENT}))
    with pytest.raises(RunFolderError, match=rf"search\.json can't be read: {where}"):
        run.read_search()


def test_the_machine_is_described() -> None:
    assert hardware()["cpu_cores"] >= 1
    assert hardware()["memory_gib"] > 0
    assert {"python", "torch", "ray"} <= set(versions())
