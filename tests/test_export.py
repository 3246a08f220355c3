"""The export's command line; exports of real searches are in test_search.py."""

import json
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.export import export_best, main
from orchestrator.run_folder import RunFolder, Search
from search_spaces.schema import Recipe
from tests.searches import make_conductor, make_run, make_search, point, run_base, run_trial
from trials.errors import ExportNotVerified
from trials.losses import RowLosses
from trials.records import Origin, TrialFolder, TrialRecord


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


@pytest.fixture
def trained(tmp_path: Path, search: Search, small_trial: TrialRecord) -> RunFolder:
    """A search whose only trial was really trained."""
    run = make_run(tmp_path / "run", search)
    shutil.copytree(small_trial.folder, run.trial("0001"))
    losses = small_trial.row_losses()
    assert losses is not None
    base = TrialFolder(run.trial("0000"))
    base.begin(search.recipe.trial_config({}), Origin.BASE, "base")
    worse = RowLosses(
        [total + 2.0 * n for total, n in zip(losses.loss_sums, losses.token_counts, strict=True)], losses.token_counts
    )
    base.record(point(worse.mean, 0), worse, None)
    return run


class Watched(threading.Thread):
    """Reads an export's manifest as often as it can, as somebody who gets up at the deadline."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(daemon=True)
        self.seen: list[dict[str, Any]] = []
        self._run, self.is_over = run, False
        self.start()

    def run(self) -> None:
        while not self.is_over:
            with suppress(OSError):  # not there, or being replaced
                self.seen.append(json.loads((self._run.export / "manifest.json").read_text()))
            time.sleep(0.05)


def test_an_export_whose_proof_takes_too_long_is_there_at_the_deadline_and_says_so(trained: RunFolder) -> None:
    watched = Watched(trained)
    exported = export_best(trained, due_seconds=0.0)
    watched.is_over = True
    first = watched.seen[0]
    assert first["verified"] is None
    assert first["files"].keys() == exported.manifest["files"].keys()
    assert exported.manifest["verified"]["difference"] <= 1e-3
    assert json.loads((trained.export / "manifest.json").read_text())["verified"] is not None
    assert sorted(path.name for path in trained.path.glob("export*")) == ["export"]


def test_an_unproved_export_that_fails_its_proof_is_taken_away(trained: RunFolder) -> None:
    (trained.trial("0001") / "adapter" / "adapter_model.safetensors").write_bytes(b"broken")
    watched = Watched(trained)
    with pytest.raises(ExportNotVerified):
        export_best(trained, due_seconds=0.0)
    watched.is_over = True
    assert watched.seen
    assert not trained.export.exists()


def test_an_earlier_export_stays_until_the_new_one_is_proved(trained: RunFolder) -> None:
    trained.export.mkdir()
    (trained.export / "manifest.json").write_text("{}")
    (trained.trial("0001") / "adapter" / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ExportNotVerified):
        export_best(trained, due_seconds=0.0)
    assert (trained.export / "manifest.json").read_text() == "{}"
