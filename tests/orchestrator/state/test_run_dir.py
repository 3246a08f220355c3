import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.state.run_dir import (
    Placement,
    RunDir,
    Search,
    create_run_dir,
    hardware,
    open_run_dir,
    versions,
)
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from tests.support.fake_search import make_run, make_search
from trials.errors import RunFolderError


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
    search = replace(search, placement=Placement(engines=2, slots=6), shortened=0.5, prediction={"trials": 9})
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


def test_a_folder_that_holds_a_search_is_not_taken_again(tmp_path: Path, small_recipe: Recipe) -> None:
    make_run(tmp_path / "run", make_search(small_recipe))
    with pytest.raises(RunFolderError, match=r"holds another search\. Go on with it by --resume"):
        create_run_dir(tmp_path / "run")


def test_a_folder_with_anything_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="is not empty"):
        create_run_dir(tmp_path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="can't write to"):
        create_run_dir(tmp_path / "file" / "run")


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    run = create_run_dir(tmp_path)
    assert (run.path / "trials").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["trials"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no search"), ("{", "is no JSON"), ("{}", "can't be read"), ('{"recipe": 3}', "can't be read")],
)
def test_a_folder_without_a_readable_search_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "search.json").write_text(content)
    with pytest.raises(RunFolderError, match=message):
        open_run_dir(tmp_path)


def test_the_machine_is_described() -> None:
    assert hardware()["cpu_cores"] >= 1
    assert hardware()["memory_gib"] > 0
    assert {"python", "torch", "ray"} <= set(versions())
