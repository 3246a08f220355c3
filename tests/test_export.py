"""The export's command line; exports of real searches are in test_search.py."""

from pathlib import Path

import pytest

from orchestrator.export import main
from search_spaces.schema import Recipe
from tests.searches import make_conductor, make_run, make_search, run_base, run_trial


def test_a_folder_without_a_search_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no search" in capsys.readouterr().err


def test_nothing_to_export_is_exit_code_3(
    tmp_path: Path, small_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    search = make_search(small_recipe)
    run = make_run(tmp_path / "run", search)
    conductor = make_conductor(run, search)
    run_base(run, conductor, 1.0)
    run_trial(run, conductor, [(900, 1.5)])
    assert main([str(run.path)]) == 3
    assert "has eval loss 1.5000 and the base model 1.0000: better by -0.5000" in capsys.readouterr().err
    assert not run.export.exists()
