"""The command that runs one trial without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SMALL
from trials.records import EndingKind, Origin, read_trial
from trials.train import main

TINY = [*SMALL, "train_tokens=800", "evaluations=1", "learning_rate=1e-3"]


def test_a_trial_is_trained_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trial"
    assert main(["demo", "--set", *TINY, "--out", str(out)]) == 0
    record = read_trial(out)
    assert (record.origin, record.name) == (Origin.SINGLE, "demo")
    assert record.ending is not None
    assert record.ending.kind is EndingKind.FINISHED
    assert record.config.hyperparameters.learning_rate == 1e-3
    assert record.has_adapter
    said = capsys.readouterr().out
    assert f"eval loss {record.best_eval_loss:.4f}" in said
    assert said.endswith(f"best adapter: {out / 'adapter'}\n")


def test_the_default_folder_is_under_runs(in_tmp_path: Path) -> None:
    assert main(["--set", *TINY]) == 0
    (folder,) = (in_tmp_path / "runs").iterdir()
    assert folder.name.startswith("trial-demo-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dem"], "unknown recipe 'dem'; did you mean 'demo'?"),
        (["--set", "learning_rat=1e-4"], "the nearest known one is 'hyperparameters.learning_rate'"),
        (["--set", "model.name=./gone"], "no model in"),
        (["--set", "data.train=gone.jsonl"], "no data file"),
    ],
)
def test_bad_input_ends_with_2_and_leaves_nothing(
    arguments: list[str], message: str, in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", "trial"]) == 2
    assert message in capsys.readouterr().err
    assert not list(in_tmp_path.iterdir())


def test_a_folder_that_holds_a_trial_is_left_alone(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (in_tmp_path / "config.json").write_text("{}")
    assert main(["--out", "."]) == 2
    assert "already holds a trial" in capsys.readouterr().err
    assert (in_tmp_path / "config.json").read_text() == "{}"
