"""The export's command line; exports of real searches are in test_search.py."""

import json
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.export.exporter import export_best, main
from orchestrator.export.target import recover_export
from orchestrator.state.clock import SteadyClock
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.supervisor.finalize import finalize
from search_spaces.schema import Recipe
from tests.orchestrator.export.test_target import contents, make_export
from tests.support.fake_search import START, make_controller, make_run, make_search, point, run_base, run_trial
from tests.support.power_cut import Disk, watched
from trials.errors import ExportNotVerified
from trials.metrics.row_losses import RowLosses
from trials.records.trial_dir import Origin, TrialDir, TrialRecord

pytestmark = pytest.mark.slow


def test_a_folder_without_a_search_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no search" in capsys.readouterr().err


def test_nothing_to_export_is_exit_code_3(
    tmp_path: Path, small_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    search = make_search(small_recipe)
    run = make_run(tmp_path / "run", search)
    controller = make_controller(run, search)
    run_base(run, controller, 1.0)
    run_trial(run, controller, [(900, 1.5)])
    assert main([str(run.path)]) == 3
    assert "has eval loss 1.5000 and the base model 1.0000: better by -0.5000" in capsys.readouterr().err
    assert not run.export.exists()


@pytest.fixture
def trained(tmp_path: Path, search: Search, small_trial: TrialRecord) -> RunDir:
    """A search whose only trial was really trained."""
    run = make_run(tmp_path / "run", search)
    shutil.copytree(small_trial.folder, run.trial("0001"))
    losses = small_trial.row_losses()
    assert losses is not None
    base = TrialDir(run.trial("0000"))
    base.begin(search.recipe.trial_config({}), Origin.BASE, "base")
    worse = RowLosses(
        [total + 2.0 * n for total, n in zip(losses.loss_sums, losses.token_counts, strict=True)], losses.token_counts
    )
    base.record(point(worse.mean, 0), worse, None)
    return run


class Watched(threading.Thread):
    """Reads an export's manifest as often as it can, as somebody who gets up at the deadline."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(daemon=True)
        self.seen: list[dict[str, Any]] = []
        self._run, self.is_over = run, False
        self.start()

    def run(self) -> None:
        while not self.is_over:
            with suppress(OSError):  # not there, or being replaced
                self.seen.append(json.loads((self._run.export / "manifest.json").read_text()))
            time.sleep(0.05)


def test_an_export_whose_proof_takes_too_long_is_there_at_the_deadline_and_says_so(trained: RunDir) -> None:
    watched = Watched(trained)
    exported = export_best(trained, due_seconds=0.0)
    watched.is_over = True
    first = watched.seen[0]
    assert first["verified"] is None
    assert first["files"].keys() == exported.manifest["files"].keys()
    assert exported.manifest["verified"]["difference"] <= 1e-3
    assert json.loads((trained.export / "manifest.json").read_text())["verified"] is not None
    assert sorted(path.name for path in trained.path.glob("export*")) == ["export"]


def _promise(folder: Path, less: float) -> None:
    """Lowers all losses on a trial's record, so that it ranks first and can't be what its adapter gives."""
    metrics, own = folder / "metrics.jsonl", folder / "adapter" / "point.json"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps({**line, "eval_loss": line["eval_loss"] - less}) + "\n" for line in lines))
    content = json.loads(own.read_text())
    own.write_text(json.dumps({**content, "eval_loss": content["eval_loss"] - less}))


def test_an_unproved_export_that_fails_its_proof_is_taken_away(trained: RunDir) -> None:
    _promise(trained.trial("0001"), 0.1)
    watched = Watched(trained)
    with pytest.raises(ExportNotVerified, match="but the trial measured"):
        export_best(trained, due_seconds=0.0)
    watched.is_over = True
    assert watched.seen
    assert not trained.export.exists()


def test_an_earlier_export_stays_until_the_new_one_is_proved(trained: RunDir) -> None:
    before = contents(make_export(trained.export))
    _promise(trained.trial("0001"), 0.1)
    with pytest.raises(ExportNotVerified, match="but the trial measured"):
        export_best(trained, due_seconds=0.0)
    assert contents(trained.export) == before


def test_the_ranking_is_walked_down_until_a_trial_is_proved(
    trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("0002", "0003", "0004", "0005"):
        shutil.copytree(trained.trial("0001"), trained.trial(name))
    for name, less in (("0002", 0.04), ("0003", 0.03), ("0004", 0.02), ("0005", 0.01)):
        _promise(trained.trial(name), less)
    weights = [trained.trial(name) / "adapter" / "adapter_model.safetensors" for name in ("0002", "0003", "0004")]
    weights[0].write_bytes(b"")  # as a power cut leaves what was never synced
    weights[1].unlink()
    weights[2].write_bytes(bytes(reversed(weights[2].read_bytes())))
    assert main([str(trained.path), "--to", str(tmp_path / "models")]) == 0
    manifest = json.loads((tmp_path / "models" / "manifest.json").read_text())
    assert manifest["trial"] == "0001"
    assert [each["trial"] for each in manifest["skipped"]] == ["0002", "0003", "0004", "0005"]
    words = (" has 0 bytes, where ", " is missing", "its SHA-256 differs", "but the trial measured")
    card, said = (tmp_path / "models" / "README.md").read_text(), capsys.readouterr()
    for each, why in zip(manifest["skipped"], words, strict=True):
        assert why in each["reason"]
        assert f"trial {each['trial']} is better and was skipped: {each['reason']}" in said.err
        assert f"| {each['trial']} | {each['eval_loss']:.4f} | {each['reason']} |" in card
    assert "exported trial 0001 to" in said.out


def test_trials_that_fail_alike_for_another_reason_are_not_all_tried(trained: RunDir) -> None:
    for name, worse in (("0002", 0.01), ("0003", 0.02), ("0004", 0.03)):
        shutil.copytree(trained.trial("0001"), trained.trial(name))
        _promise(trained.trial(name), -worse)
    path = trained.path / "search.json"
    content = json.loads(path.read_text())
    content["recipe"]["data"]["eval"] = "gone.jsonl"
    path.write_text(json.dumps(content))
    with pytest.raises(ExportNotVerified, match=r"(?s)trial 0001: .*gone.*trial 0002: .*gone.*2 more weren't tried"):
        export_best(trained)
    assert [path.name for path in trained.path.iterdir() if "export" in path.name] == []


def test_a_search_of_an_earlier_version_has_no_hashes_and_is_exported(trained: RunDir) -> None:
    adapter = trained.trial("0001") / "adapter"
    content = json.loads((adapter / "point.json").read_text())
    del content["files"]
    (adapter / "point.json").write_text(json.dumps(content))
    (adapter / "eval_rows.json").unlink()
    adapter.rename(adapter.with_name("adapter.old"))
    assert export_best(trained).manifest["trial"] == "0001"
    trained.trial("0001").joinpath("adapter.old", "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ExportNotVerified, match="is damaged: it has 1 bytes, and its header tells of 0"):
        export_best(trained)


def test_a_winner_is_exported_though_the_report_fails_and_files_are_in_its_way(
    trained: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.export.mkdir()
    (trained.export / "notes.txt").write_text("mine")
    monkeypatch.setitem(sys.modules, "orchestrator.report.render", None)  # as where plotly isn't installed
    clock = SteadyClock(is_time_of_day=False, wall=START.timestamp)
    assert finalize(trained, clock, interrupted=False) == 0
    said = capsys.readouterr()
    assert "warning: no report: " in said.err
    assert f"what was in {trained.export} is in {trained.export}.kept-1 now" in said.err
    assert f"adapter: {trained.export}" in said.out
    assert (trained.path / "export.kept-1" / "notes.txt").read_text() == "mine"


def test_killed_between_its_two_renames_the_earlier_export_comes_back_and_the_next_one_is_proved(
    trained: RunDir,
) -> None:
    before = contents(make_export(trained.export, "old"))
    disk = Disk(trained.path, stop_before=r"rename \S*/export export$")
    with watched(disk):
        export_best(trained)
    assert disk.is_off
    assert not trained.export.exists()
    recover_export(trained.export)
    assert contents(trained.export) == before
    assert export_best(trained).manifest["verified"] is not None
    assert sorted(path.name for path in trained.path.glob("*export*")) == ["export"]
