from pathlib import Path

import pytest

from orchestrator.state.run_dir import create_run_dir, open_run_dir
from search_spaces.schema import Recipe
from tests.support.fake_search import make_run, make_search
from trials.errors import RunFolderError


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
