"""Trials that two processes train under TRL.

torchrun --nproc-per-node 2 -m tests.support.two_processes PATH SCENARIO...
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Params4bit
from torch.distributed.tensor import DTensor
from trl import SFTTrainer

from search_spaces.loader import load_recipe
from tests.conftest import SMALL
from tests.support.small_splits import first_rows
from tests.support.trained_trials import STEPS, TRL, Workshop
from trials.config import TrialConfig
from trials.data.dataset import TrialData, load_data
from trials.model.loading import load_tokenizer
from trials.records.rewind import restore_latest
from trials.records.trial_dir import EvalPoint, Origin, TrialDir, read_trial
from trials.run import run_single_trial
from trials.system.distributed import ProcessGroup, joined_process_group
from trials.training.training_run import Decision, TrainingRun
from trials.trl.fsdp import STORAGE

ROWS = 17
"""Of four a step: the last step of an epoch has one row, and one of two processes has none."""
PAUSING: dict[str, Any] = {"checkpoint_evaluations": True, "checkpoint_every_rows": None, "keep_checkpoints": 1}
UNEVEN: dict[str, Any] = {"effective_batch": 5, "rows_seen": 60}
SHARED: dict[str, Any] = {"fsdp": True}
EIGHT_BIT: dict[str, Any] = {"optimizer": "paged_adamw_8bit", "lora_rank": 64, "adapter_average": 0.5}
AVERAGED: dict[str, Any] = {"scheduler": "inverse_sqrt", "adapter_average": 0.2}
NOISE: dict[str, Any] = {"neftune_noise_alpha": 5.0}
_COMPUTE_LOSS = SFTTrainer.compute_loss


class TwoRanks:
    """One of the two processes."""

    def __init__(self, path: Path, ranks: ProcessGroup) -> None:
        recipe = load_recipe("demo", SMALL, environ={}).recipe
        self._tokenizer = load_tokenizer(recipe.model)
        data = few_to_evaluate(load_data(recipe.data, self._tokenizer))
        self.shop = Workshop(recipe, data, self._tokenizer, path)
        self._data: TrialData = replace(data, train=first_rows(data.train, ROWS))
        self._path, self.ranks = path, ranks

    def train(
        self, name: str, config: TrialConfig, on_eval: Callable[[EvalPoint], Decision] = lambda _: Decision.CONTINUE
    ) -> bool:
        """From its newest checkpoint, if it has begun already; whether it came to its end."""
        folder = TrialDir(self._path / name, is_written=self.ranks.is_first)

        def begin() -> Any:
            if (folder.path / "config.json").exists():
                return restore_latest(folder.path)
            folder.begin(config, Origin.PROPOSED, name, self._data.fingerprint)
            return None

        checkpoint = self.ranks.on_rank_zero(begin)
        rows = (self._data, self._tokenizer)
        run = TrainingRun(config, *rows, folder, on_eval, checkpoint=checkpoint, ranks=self.ranks)
        ending = run_single_trial(run, group="two") if config.machine.fsdp else TRL.run(run)
        return ending is not None

    def straight(self) -> None:
        self.train("straight", self.shop.config())

    def uneven(self) -> None:
        self.train("uneven", self.shop.config({"micro_batch_rows": 2}, **UNEVEN))

    def shared(self) -> None:
        """The base's layers are divided; one that runs through, and one that is paused at every evaluation."""
        config = self.shop.config({**PAUSING, **SHARED})
        self.train("shared", config, self.look_at_base)
        while not self.train("shared in stretches", config, stop_before_the_end):
            pass
        recomputed = {"gradient_checkpointing": True, "micro_batch_rows": 1}
        self.train("shared, recomputed", self.shop.config({**SHARED, **recomputed}, **EIGHT_BIT))

    def look_at_base(self, point: EvalPoint) -> Decision:
        """Writes down how many bytes of packed weights there are in this process, whole and in parts."""
        things = [thing for thing in gc.get_objects() if type(thing) in (Params4bit, DTensor)]
        whole = sum(thing.untyped_storage().nbytes() for thing in things if type(thing) is Params4bit)
        parts = [thing for thing in things if type(thing) is DTensor and thing.dtype == STORAGE]
        found = {"whole": whole, "parts": sum(p.to_local().nbytes for p in parts), "of": sum(p.nbytes for p in parts)}
        (self._path / "bytes.json").write_text(json.dumps(found))
        return Decision.CONTINUE

    def noise(self) -> None:
        """One that runs through, and one that is paused at every evaluation."""
        config = self.shop.config(PAUSING, **NOISE)
        self.train("noise", config)
        drawn = self.ranks.all_gather(lambda: torch.rand(1).item())
        assert len(set(drawn)) == 2
        while not self.train("noise in stretches", config, stop_before_the_end):
            pass

    def averaged(self) -> None:
        """Paused at every evaluation."""
        while not self.train("averaged in stretches", self.shop.config(PAUSING, **AVERAGED), stop_before_the_end):
            pass

    def paused(self) -> None:
        for name in ("for one", "for the engine"):
            self.train(name, self.shop.config(PAUSING), lambda _: Decision.STOP)

    def resumed(self) -> None:
        for name in ("from one", "from the engine"):
            self.train(name, read_trial(self._path / name).config)

    def short(self) -> None:
        """The second process has room for one row at once, and tries more first."""
        with_room_for(lambda _, rows: self.ranks.is_first or rows <= 1)
        self.train("short", self.shop.config(PAUSING))

    def short_later(self) -> None:
        """As `short`, but it shows only when the trial has been evaluated once."""
        with_room_for(lambda step, rows: self.ranks.is_first or rows <= 1 or step < 3)
        self.train("short later", self.shop.config(PAUSING))


def few_to_evaluate(data: TrialData) -> TrialData:
    """An odd number of rows to be evaluated on: one process has one more than the other."""
    return replace(data, eval=first_rows(data.eval, 11))


def stop_before_the_end(point: EvalPoint) -> Decision:
    return Decision.STOP if point.step < STEPS else Decision.CONTINUE


def with_room_for(fits: Callable[[int, int], bool]) -> None:
    """As on a GPU that has room for a micro-batch of so many rows after so many steps, or hasn't."""

    def checked(self: SFTTrainer, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        if not fits(self.state.global_step, len(inputs["input_ids"])):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return _COMPUTE_LOSS(self, model, inputs, *args, **kwargs)

    SFTTrainer.compute_loss = checked


def main(path: Path, scenarios: list[str]) -> None:
    with joined_process_group() as ranks:
        two = TwoRanks(path, ranks)
        for scenario in scenarios:
            getattr(two, scenario)()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
