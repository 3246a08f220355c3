"""Trials with checkpoints that are really trained, cut off and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from search_spaces.schema import Recipe
from tests.support.short_base import short_base
from tests.support.small_splits import first_rows
from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.records.checkpoints import choose_checkpoint
from trials.records.rewind import restore_latest, rewind
from trials.records.trial_dir import EvalPoint, Origin, TrialDir, TrialRecord, read_trial
from trials.system.torch_setup import use_threads
from trials.training.training_run import Decision, TrainingRun, TrialBackend
from trials.trl.backend import TrlBackend

STEPS, CHECKPOINT = 12, 6
TOLERANCE = 1e-6
TRL = TrlBackend()


class Workshop:
    """Runs trials of 12 steps of 4 rows, evaluated every other step, with a checkpoint after 6 and 12."""

    def __init__(self, recipe: Recipe, data: TrialData, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
        use_threads(recipe.machine)
        self._recipe = recipe
        self._data = data
        self._tokenizer = tokenizer
        self.path = path

    def config(self, machine: dict[str, Any] | None = None, **hyperparameters: Any) -> TrialConfig:
        usually = {"learning_rate": 1e-3, "lora_dropout": 0.1, "effective_batch": 4}
        length = {"epochs": None, "train_tokens": None, "rows_seen": 4 * STEPS}
        config = self._recipe.trial_config({**usually, **length, **hyperparameters})
        update = {
            "machine": config.machine.model_copy(update={"checkpoint_every_rows": 4 * CHECKPOINT, **(machine or {})}),
            "evaluation": config.evaluation.model_copy(update={"evaluations": STEPS // 2, "patience": 9}),
            "model": config.model.model_copy(update={"name": str(short_base()), "compute_dtype": "float32"}),
        }
        return config.model_copy(update=update)

    def run(
        self,
        name: str,
        config: TrialConfig,
        rows: int,
        on_eval: Callable[[EvalPoint], Decision] | None = None,
        by: TrialBackend = TRL,
        origin: Origin = Origin.SINGLE,
    ) -> TrialRecord:
        """`by`: TRL or an engine, here and in the other methods."""
        folder = TrialDir(self.path / name)
        folder.begin(config, origin, name, self._data.fingerprint)
        data = replace(self._data, train=first_rows(self._data.train, rows))
        by.run(TrainingRun(config, data, self._tokenizer, folder, on_eval or (lambda _: Decision.CONTINUE)))
        return read_trial(folder.path)

    def resume(self, record: TrialRecord, rows: int, step: int | None = None, by: TrialBackend = TRL) -> TrialRecord:
        checkpoint = choose_checkpoint(record.folder, step)
        rewind(record, checkpoint)
        data = replace(self._data, train=first_rows(self._data.train, rows))
        run = TrainingRun(
            *(record.config, data, self._tokenizer, TrialDir(record.folder)),
            on_eval=lambda _: Decision.CONTINUE,
            checkpoint=checkpoint,
        )
        by.run(run)
        return read_trial(record.folder)

    def in_segments(self, name: str, config: TrialConfig, rows: int, ways: Iterable[TrialBackend]) -> TrialRecord:
        """A trial of a search that is paused at every evaluation but the last, each segment run in the next way."""
        folder = TrialDir(self.path / name)
        folder.begin(config, Origin.PROPOSED, name, self._data.fingerprint)
        data = replace(self._data, train=first_rows(self._data.train, rows))
        steps: list[int] = []

        def pause(point: EvalPoint) -> Decision:
            steps.append(point.step)
            return Decision.STOP if point.step < STEPS else Decision.CONTINUE

        for by in ways:
            checkpoint = restore_latest(folder.path)
            assert (checkpoint.step if checkpoint else 0) == (steps[-1] if steps else 0)
            run = TrainingRun(config, data, self._tokenizer, folder, pause, checkpoint=checkpoint)
            if by.run(run) is not None:
                break
        return read_trial(folder.path)

    def cut_off(
        self,
        config: TrialConfig,
        rows: int,
        after: int = CHECKPOINT,
        by: TrialBackend = TRL,
        name: str = "cut-off",
    ) -> TrialRecord:
        """A trial whose user pressed Ctrl-C at its first evaluation after a step."""

        def interrupt(point: EvalPoint) -> Decision:
            if point.step > after:
                raise KeyboardInterrupt
            return Decision.CONTINUE

        with pytest.raises(KeyboardInterrupt):
            self.run(name, config, rows, interrupt, by)
        record = read_trial(self.path / name)
        assert record.ending is None
        assert record.points[-1].step > after
        return record


def step_losses(record: TrialRecord) -> list[float]:
    """The training loss of every step, as the last checkpoint has it."""
    state = json.loads((record.folder / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]
