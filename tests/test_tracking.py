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
