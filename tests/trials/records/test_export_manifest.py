"""An export that is used must be the one that was proved."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from trials import evaluate, generate
from trials.errors import ModelError
from trials.records.export_manifest import refuse_changed

FILES = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md", "merged/model.safetensors")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """With the manifest that `orchestrator.export` writes."""
    export = tmp_path / "export"
    (export / "merged").mkdir(parents=True)
    for name in FILES:
        (export / name).write_text(f"what was proved: {name}")
    hashes = {name: hashlib.sha256((export / name).read_bytes()).hexdigest() for name in FILES}
    manifest = {"trial": "0003", "eval_loss": 1.0, "verified": {}, "base_model": {}, "config": {}, "files": hashes}
    (export / "manifest.json").write_text(json.dumps(manifest))
    return export


def test_one_that_is_as_it_was_is_used(export: Path) -> None:
    refuse_changed(str(export))
    refuse_changed(str(export / "merged"))
    (export / "README.md").write_text("edited by its user")
    (export / "notes.txt").write_text("a file of its user's")
    refuse_changed(str(export))


@pytest.mark.parametrize("name", [name for name in FILES if name != "README.md"])
@pytest.mark.parametrize("how", ["changed", "cut", "missing"])
def test_a_file_that_is_another_is_refused_by_name(export: Path, name: str, how: str) -> None:
    file = export / name
    if how == "missing":
        file.unlink()
    else:
        file.write_text("another" if how == "changed" else "")
    with pytest.raises(
        ModelError, match=f"isn't the export that was proved: {file.name} (is missing|isn't what was written)"
    ):
        refuse_changed(str(file.parent))


def test_merged_weights_do_not_matter_to_the_adapter(export: Path) -> None:
    (export / "merged/model.safetensors").unlink()
    refuse_changed(str(export))


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        "",
        "[]",
        "{}",
        '{"files": 1}',
        '{"files": {"tokenizer.json": 1}}',
        f'{{"files": {{"tokenizer.json": "{"0" * 64}"}}}}',
    ],
)
def test_without_hashes_of_ours_nothing_is_refused(export: Path, manifest: str | None) -> None:
    (export / "manifest.json").unlink()
    if manifest is not None:
        (export / "manifest.json").write_text(manifest)
    (export / "tokenizer.json").unlink()
    refuse_changed(str(export))
    refuse_changed(str(export / "merged"))


def test_names_on_the_hub_and_folders_elsewhere_are_none_of_its_affairs(tmp_path: Path) -> None:
    refuse_changed("ann/model")
    refuse_changed(str(tmp_path))


def test_the_commands_end_with_exit_code_2(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (export / "adapter_model.safetensors").write_text("cut")
    assert generate.main([str(export), "--prompt", "hello"]) == 2
    assert "adapter_model.safetensors isn't what was written: its SHA-256 differs" in capsys.readouterr().err
    assert evaluate.main([str(export), "--data", "rows.jsonl"]) == 2
    assert "adapter_model.safetensors isn't what was written: its SHA-256 differs" in capsys.readouterr().err
