"""Weights & Biases only when the environment asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trials.config import TrackingSettings, TrialConfig
from trials.tracking import wandb_is_wanted, wandb_run


@pytest.mark.parametrize(
    ("mode", "key", "wanted"),
    [
        (None, None, False),
        (None, "abc", True),
        ("online", "abc", True),
        ("online", None, False),
        ("offline", None, True),
        ("disabled", "abc", False),
    ],
)
def test_a_key_or_offline_mode_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, mode: str | None, key: str | None, wanted: bool
) -> None:
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert wandb_is_wanted(TrackingSettings()) == wanted
    assert not wandb_is_wanted(TrackingSettings(wandb=False))


def test_nothing_is_written_unasked(tmp_path: Path, small_config: TrialConfig) -> None:
    with wandb_run(tmp_path, small_config, "search"):
        pass
    assert not list(tmp_path.iterdir())


def test_offline_a_run_is_named_after_its_trial(
    tmp_path: Path, small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "0007").mkdir()
    with wandb_run(tmp_path / "0007", small_config, "night"):
        assert wandb.run is not None
        assert (wandb.run.name, wandb.run.group) == ("night/0007", "night")
        assert wandb.run.config["hyperparameters"]["learning_rate"] == small_config.hyperparameters.learning_rate
    assert wandb.run is None
    assert list(tmp_path.glob("0007/wandb/offline-run-*"))


def test_offline_a_trial_that_goes_on_does_so_in_its_own_run(
    tmp_path: Path, small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, other = tmp_path / "0007", tmp_path / "0008"
    for folder in (first, other):
        folder.mkdir()
    ids = [_id_of_run(folder, small_config) for folder in (first, first, other)]
    assert ids[0] == ids[1] == (first / "wandb_run").read_text().strip()
    assert ids[2] != ids[0]
    named = small_config.model_copy(update={"tracking": TrackingSettings(run_id="chosen")})
    assert _id_of_run(first, named) == "chosen"
    assert _id_of_run(first, small_config) == "chosen"


def _id_of_run(folder: Path, config: TrialConfig) -> str:
    import wandb

    with wandb_run(folder, config, "night") as log:
        assert wandb.run is not None
        log({"eval/loss": 1.0})
        found = str(wandb.run.id)
    assert list(folder.glob(f"wandb/offline-run-*-{found}/run-{found}.wandb"))
    return found
