"""Which way a trial takes that nobody searches with."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from search_spaces.schema import Recipe
from trials.data.dataset import TrialData
from trials.engine.engine import Engine
from trials.records.trial_dir import EvalPoint, Origin, TrialDir, read_trial
from trials.run import run_single_trial
from trials.state import TrialState
from trials.training.training_run import Decision, TrainingRun


def engines_in_memory() -> list[Engine]:
    return [thing for thing in gc.get_objects() if isinstance(thing, Engine)]


def engines_seen(
    recipe: Recipe, data: TrialData, tokenizer: PreTrainedTokenizerBase, path: Path, engine: str, **values: Any
) -> bool:
    """Runs a trial; whether its base model was held by an engine at its first evaluation."""
    config = recipe.trial_config({"learning_rate": 3e-3, "train_tokens": 1000, **values})
    machine = config.machine.model_copy(update={"engine": engine})
    config = config.model_copy(update={"machine": machine, "base_eval_loss": 9.0})
    folder, seen = TrialDir(path), []
    others = engines_in_memory()  # what an earlier test's failure or log still holds

    def on_eval(point: EvalPoint) -> Decision:
        seen.append(len(engines_in_memory()) > len(others))
        return Decision.CONTINUE

    folder.begin(config, Origin.SINGLE, "demo")
    ending = run_single_trial(TrainingRun(config, data, tokenizer, folder, on_eval), group="demo")
    assert ending is not None
    assert ending.kind is TrialState.FINISHED
    assert len(read_trial(path).points) == len(seen)
    return seen[0]


def test_the_engine_runs_what_it_can_if_it_is_wanted(
    tmp_path: Path,
    small_recipe: Recipe,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = (small_recipe, small_data, tokenizer)
    with caplog.at_level(logging.INFO, logger="trials.run"):
        assert not engines_seen(*case, tmp_path / "trl", "trl")
        assert caplog.messages == []
        assert not engines_seen(*case, tmp_path / "dora", "shared", use_dora=True)
        assert caplog.messages == ["TRL's trainer runs this trial: the engine has no DoRA"]
        assert engines_seen(*case, tmp_path / "engine", "shared")


def test_training_losses_and_learning_rates_are_in_the_trial_s_wandb_run(
    tmp_path: Path,
    small_recipe: Recipe,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    engines_seen(small_recipe, small_data, tokenizer, tmp_path / "engine", "shared")
    points = read_trial(tmp_path / "engine").points
    (log,) = tmp_path.glob("engine/wandb/offline-run-*/run-*.wandb")
    said = log.read_bytes()
    for name, times in (("train/learning_rate", points[-1].step), ("eval/loss", len(points))):
        assert said.count(name.encode()) == 2 * times  # in the history, and as the newest
