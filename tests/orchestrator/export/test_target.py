"""Where an export may go, and what it leaves alone: real folders, no proofs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.export.exporter import main
from orchestrator.export.target import recover_export, refuse_target, set_strangers_aside, staging_beside
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from tests.support.cli import ROOT
from tests.support.fake_search import BASE_LOSS, point, record
from trials.errors import RunFolderError
from trials.records.trial_dir import Origin, TrialDir


def make_export(folder: Path, content: str = "weights") -> Path:
    """An export as far as its names and its manifest go."""
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(content)
    manifest = {"trial": "0001", "eval_loss": 1.0, "verified": None, "base_model": {}, "config": {}}
    manifest["files"] = {"adapter_model.safetensors": "0" * 64, "tokenizer.json": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def contents(folder: Path) -> dict[str, str]:
    """All that is below a folder; the content of files, the targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {path.readlink()}"
        else:
            found[str(path.relative_to(folder))] = path.read_bytes().decode("latin-1") if path.is_file() else "folder"
    return found


@pytest.fixture
def won(run: RunDir, search: Search) -> RunDir:
    """A search whose trial beats the base model, with weights that are not what was saved."""
    for trial_id, origin, loss in (("0000", Origin.BASE, BASE_LOSS), ("0001", Origin.PROPOSED, 1.5)):
        folder = TrialDir(run.trial(trial_id))
        folder.begin(search.recipe.trial_config({}), origin, origin.value)
        record(folder, point(loss, 900), base=origin is Origin.BASE)
    (run.trial("0001") / "adapter" / "adapter_model.safetensors").write_text("WEIGHTS")
    return run


def _other_adapters(at: Path) -> None:
    at.mkdir()
    (at / "adapter_model.safetensors").write_text("of another project")


def _other_manifest(at: Path) -> None:
    at.mkdir()
    (at / "manifest.json").write_text('{"name": "an app", "files": {"index.html": "12ab"}}')


def _export_and_more(at: Path) -> None:
    make_export(at)
    (at / "model.gguf").write_text("made from it by hand")


def _file(at: Path) -> None:
    at.write_text("a file", encoding="utf-8")


def _link(at: Path) -> None:
    make_export(at.with_name("elsewhere"))
    at.symlink_to("elsewhere")


def _dangling(at: Path) -> None:
    at.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_other_adapters, "is not empty, and no export of this project. It's left as it is. Give a new or empty"),
        (_other_manifest, "is not empty, and no export of this project"),
        (_export_and_more, "holds model.gguf, which isn't of the export that is there"),
        (_file, "is a file. Give a new or empty folder, or an earlier export."),
        (_link, "is a link to elsewhere. Give the folder itself"),
        (_dangling, "is a link to nowhere"),
    ],
)
def test_what_is_no_export_is_refused_and_left_as_it_is(
    won: RunDir, tmp_path: Path, make: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "models"
    make(target)  # type: ignore[operator]
    for name in ("models.old", "models.new", "models.unproved"):
        _other_adapters(tmp_path / name)
    before = contents(tmp_path)
    assert main([str(won.path), "--to", str(target)]) == 2
    assert says in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "where",
    ["", "..", "trials", "trials/0001", "trials/new", "trials/0001/adapter", "export/inner", "logs", "export/.."],
)
def test_the_run_folder_is_no_target(
    won: RunDir, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tmp_path)
    assert main([str(won.path), "--to", f"{won.path}/{where}"]) == 2
    assert "the run folder" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_refused(
    won: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file")
    assert main([str(won.path), "--to", str(tmp_path / "file" / "models")]) == 2
    assert f"can't write to {tmp_path / 'file'}: " in capsys.readouterr().err


def test_new_empty_and_earlier_exports_are_allowed(won: RunDir, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_export(tmp_path / "earlier")
    for target in ("new", "empty", "earlier", "run/export", "run/export-merged"):
        refuse_target(tmp_path / target, won.path)


def test_an_export_that_fails_leaves_the_users_folders_beside_it(
    won: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("models.old", "models.new", "models.unproved", ".models.export-abc"):
        _other_adapters(tmp_path / name)
    before = contents(tmp_path)
    assert main([str(won.path), "--to", str(tmp_path / "models")]) == 3
    assert "adapter_model.safetensors isn't what was written: its SHA-256" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_staged_folder_takes_the_place_of_an_earlier_export(tmp_path: Path) -> None:
    target = make_export(tmp_path / "models", "old")
    with staging_beside(target, tmp_path / "run", may_set_aside=False) as staging:
        made = staging.empty("made")
        make_export(made / "inner", "new")
        staging.put_in_place(made / "inner")
        staging.take_away()
        assert not target.exists()
    assert not list(tmp_path.iterdir())


def test_what_comes_to_the_target_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "models"
    with staging_beside(target, tmp_path / "run", may_set_aside=False) as staging:
        made = make_export(staging.empty("export") / "inner")
        _other_adapters(target)
        with pytest.raises(RunFolderError, match="is not empty, and no export"):
            staging.put_in_place(made)
    assert contents(tmp_path) == {"models": "folder", "models/adapter_model.safetensors": "of another project"}


@pytest.mark.parametrize("make", [_other_adapters, _export_and_more, _file, _link])
def test_a_search_sets_aside_what_is_in_the_way_of_its_export(run: RunDir, make: object) -> None:
    make(run.export)  # type: ignore[operator]
    before = contents(run.path)
    kept = set_strangers_aside(run.export)
    assert kept == run.path / "export.kept-1"
    assert list(contents(run.path).values()) == list(before.values())
    refuse_target(run.export, run.path)
    assert set_strangers_aside(run.export) is None


KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.export.target import staging_beside
from tests.orchestrator.export.test_target import make_export
target = Path(sys.argv[1])
with staging_beside(target, target.with_name("run"), may_set_aside=False) as staging:
    make_export(staging.path / "export", "new")
    target.rename(staging.path / "replaced")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_killed_export_is_cleared_up_after_and_gives_the_earlier_one_back(tmp_path: Path) -> None:
    target = make_export(tmp_path / "mod[e]ls", "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), "killed"], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert not target.exists()
    strange = tmp_path / ".mod[e]ls.export-mine"  # as the user may name a folder
    _other_adapters(strange)
    recover_export(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == [strange.name, target.name]
    assert (target / "adapter_model.safetensors").read_text() == "old"


def test_an_export_that_another_process_makes_is_left_alone(tmp_path: Path) -> None:
    target = make_export(tmp_path / "models", "old")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target), "runs"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before = contents(tmp_path)
        recover_export(target)
        assert contents(tmp_path) == before
        process.communicate(b"")
    assert (target / "adapter_model.safetensors").read_text() == "old"
