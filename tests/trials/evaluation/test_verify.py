"""An export is proved from its own files: adapter, test rows, answers, merged weights."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from trials.evaluation.verify import VerificationJob, main, verify_export
from trials.records.trial_dir import TrialRecord
from trials.system.files import write_json


@pytest.fixture(scope="module")
def job(
    small_trial: TrialRecord, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> VerificationJob:
    """An export as the orchestrator makes it: adapter and tokenizer side by side."""
    export = tmp_path_factory.mktemp("run") / "export"
    shutil.copytree(small_trial.folder / "adapter", export)
    tokenizer.save_pretrained(export)
    config = small_trial.config
    return VerificationJob(
        export=str(export),
        model=config.model,
        data=config.data,
        machine=config.machine.model_copy(update={"cpu_threads": 2}),
        batch_rows=8,
        samples=1,
        merge=False,
    )


@pytest.fixture(scope="module")
def found(job: VerificationJob) -> Iterator[dict[str, Any]]:
    before = torch.get_num_threads()
    found = verify_export(job.model_copy(update={"merge": True}))
    yield {**found, "threads": torch.get_num_threads()}
    torch.set_num_threads(before)


def test_the_export_has_the_loss_of_its_trial(found: dict[str, Any], small_trial: TrialRecord) -> None:
    assert found["eval_loss"] == pytest.approx(small_trial.best_eval_loss, abs=5e-5)
    assert len(found["row_losses"]["loss_sums"]) == 12


def test_it_takes_as_many_threads_as_trials(found: dict[str, Any], job: VerificationJob) -> None:
    assert found["threads"] == job.machine.cpu_threads


def test_test_rows_are_judged_beside_the_base(found: dict[str, Any]) -> None:
    test = found["test"]
    assert test["rows"] == 8
    assert test["difference"] == pytest.approx(test["base_eval_loss"] - test["eval_loss"])
    assert test["difference"] > 2 * test["standard_error"] > 0


def test_answers_are_shown(found: dict[str, Any]) -> None:
    (sample,) = found["samples"]
    assert set(sample) == {"id", "prompt", "expected", "base", "winner"}


def test_merged_weights_stand_alone_and_are_about_as_good(found: dict[str, Any], job: VerificationJob) -> None:
    merged = Path(job.export) / "merged"
    assert (merged / "model.safetensors").is_file()
    assert not (merged / "adapter_config.json").exists()
    # Not the same: the adapter was trained on NF4 weights.
    assert abs(found["merged"] - found["eval_loss"]) < 0.2 * found["test"]["difference"]


def test_without_test_rows_the_samples_are_eval_rows(job: VerificationJob) -> None:
    data = job.data.model_copy(update={"test": None})
    found = verify_export(job.model_copy(update={"data": data}))
    assert "test" not in found
    assert "merged" not in found
    assert len(found["samples"]) == 1


def test_the_command_writes_what_it_finds(
    job: VerificationJob, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "job.json", job.model_dump(mode="json"))
    monkeypatch.setattr(sys, "argv", ["proof", str(tmp_path / "job.json"), str(tmp_path / "result.json")])
    assert main() == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["row_losses"] == found["row_losses"]


def test_an_export_that_is_not_there_ends_with_2(
    job: VerificationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = job.model_copy(update={"export": str(tmp_path / "gone")})
    write_json(tmp_path / "job.json", gone.model_dump(mode="json"))
    monkeypatch.setattr(sys, "argv", ["proof", str(tmp_path / "job.json"), str(tmp_path / "result.json")])
    assert main() == 2
    assert "gone" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()
