"""An adapter's base and its tokenizer are found where the adapter says, or where its trial does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trials.config import ModelSettings
from trials.errors import ModelError, RunFolderError
from trials.records.adapter_dir import base_settings, is_adapter, tokenizer_settings, trial_config
from trials.records.trial_dir import TrialRecord


@pytest.fixture
def adapter(small_trial: TrialRecord, tmp_path: Path) -> Path:
    """A trial of one's own, to be changed: its `adapter/`."""
    shutil.copytree(small_trial.folder, tmp_path / "0001")
    return tmp_path / "0001" / "adapter"


def test_a_trials_adapter_knows_its_trial(adapter: Path, small_trial: TrialRecord) -> None:
    assert trial_config(str(adapter)) == small_trial.config
    assert base_settings(str(adapter)) == tokenizer_settings(str(adapter)) == small_trial.config.model


def test_an_adapter_on_its_own_knows_its_base_only(adapter: Path, small_trial: TrialRecord, tmp_path: Path) -> None:
    alone = str(adapter.rename(tmp_path / "alone"))
    assert trial_config(alone) is None
    assert base_settings(alone) == tokenizer_settings(alone) == ModelSettings(name=small_trial.config.model.name)


def test_an_exported_adapter_has_its_own_tokenizer(adapter: Path) -> None:
    (adapter / "tokenizer_config.json").write_text("{}")
    assert tokenizer_settings(str(adapter)).name == str(adapter)
    assert base_settings(str(adapter)).name != str(adapter)


def test_a_model_is_no_adapter(small_trial: TrialRecord) -> None:
    name = small_trial.config.model.name
    assert not is_adapter(name)
    assert trial_config(name) is None
    assert tokenizer_settings(name) == ModelSettings(name=name)


@pytest.mark.parametrize("other", ['{"model_type": "mistral"}', "[]", "rubbish", '{"origin": "the hub"}'])
def test_another_config_beside_an_adapter_is_no_trials(adapter: Path, other: str) -> None:
    (adapter.parent / "config.json").write_text(other)
    assert trial_config(str(adapter)) is None


def test_a_damaged_trial_is_said_to_be_one(adapter: Path) -> None:
    (adapter.parent / "config.json").write_text('{"origin": "single"}')
    with pytest.raises(RunFolderError, match="can't be read"):
        trial_config(str(adapter))


@pytest.mark.parametrize("rubbish", ["rubbish", "{}", '{"base_model_name_or_path": 3}'])
def test_an_adapter_without_a_base(adapter: Path, rubbish: str) -> None:
    (adapter / "adapter_config.json").write_text(rubbish)
    with pytest.raises(ModelError, match=r"can't load the adapter .* must name a base model"):
        base_settings(str(adapter))


def test_an_export_knows_its_trial_by_its_manifest(adapter: Path, small_trial: TrialRecord, tmp_path: Path) -> None:
    export = adapter.rename(tmp_path / "export")
    manifest = {"trial": "0001", "config": small_trial.config.model_dump(mode="json")}
    (export / "manifest.json").write_text(json.dumps(manifest))
    assert trial_config(str(export)) == small_trial.config


@pytest.mark.parametrize("other", ["{}", "rubbish", '{"config": {"of": "another version"}}'])
def test_another_manifest_is_no_hindrance(adapter: Path, tmp_path: Path, other: str) -> None:
    export = adapter.rename(tmp_path / "export")
    (export / "manifest.json").write_text(other)
    assert trial_config(str(export)) is None
