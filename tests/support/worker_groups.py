"""A trial in the engine as every process of a group is given it, and accidents that befall only one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.support.small_splits import first_rows
from trials.config import TrialConfig
from trials.data.dataset import load_data
from trials.engine.engine import Engine
from trials.engine.model.decoder import Decoder
from trials.engine.model.packed_batch import PackedBatch
from trials.model.loading import load_tokenizer
from trials.records.checkpoints import choose_checkpoint
from trials.records.trial_dir import Ending, TrialDir
from trials.system.distributed import ProcessGroup
from trials.system.torch_setup import use_threads
from trials.training.training_run import Decision, TrainingRun


@dataclass(frozen=True)
class RankTrial:
    """Of `rows` training rows; `elsewhere` is the folder that all ranks but the first are given."""

    folder: Path
    config: TrialConfig
    rows: int
    resumes: bool = False
    elsewhere: Path | None = None
    time_is_over_for_the_second: bool = False
    called_off_at_question: int | None = None
    """How often the second rank is asked before it says that nobody waits any more."""
    most_tokens_of_the_second: float = math.inf
    """For more at once it has no memory."""
    micro_batches_before: int = 0
    """Before that happens."""


def train(ranks: ProcessGroup, trial: RankTrial) -> Ending | None:
    """Every rank's part of it. Alone, what befalls the second befalls the one there is."""
    is_victim = ranks.rank == ranks.world_size - 1
    path = trial.folder if ranks.is_first or trial.elsewhere is None else trial.elsewhere
    folder = TrialDir(path, is_written=ranks.is_first)
    tokenizer, data = _rows(trial)
    stop_at = 0.0 if is_victim and trial.time_is_over_for_the_second else math.inf
    checkpoint = choose_checkpoint(trial.folder, None) if trial.resumes else None
    asked = _asked(trial.called_off_at_question if is_victim else None)
    with _short_of_memory(trial, is_victim):
        run = TrainingRun(
            *(trial.config, data, tokenizer, folder, lambda _: Decision.CONTINUE),
            *(stop_at, checkpoint, asked),
            ranks=ranks,
        )
        return _engine(trial.config).run(run)


def evaluate_base(ranks: ProcessGroup, trial: RankTrial) -> Ending:
    """The base model's evaluation."""
    tokenizer, data = _rows(trial)
    folder = TrialDir(trial.folder, is_written=ranks.is_first)
    run = TrainingRun(trial.config, data, tokenizer, folder, lambda _: Decision.CONTINUE, ranks=ranks)
    return _engine(trial.config).evaluate_base(run)


def oom_events(_: ProcessGroup) -> int:
    """How often memory didn't suffice for this rank in the trial that was last."""
    return len(_refused)


_engines: list[Engine] = []
_refused: list[int] = []
"""Tokens of each micro-step."""


def _engine(config: TrialConfig) -> Engine:
    """The process's own, for all its trials, as in a group under Ray."""
    if not _engines:
        use_threads(config.machine)
        _engines.append(Engine(config.model, config.machine))
    return _engines[0]


_known: dict[int, Any] = {}


def _rows(trial: RankTrial) -> Any:
    if trial.rows not in _known:
        tokenizer = load_tokenizer(trial.config.model)
        data = load_data(trial.config.data, tokenizer)
        _known[trial.rows] = tokenizer, replace(data, train=first_rows(data.train, trial.rows))
    return _known[trial.rows]


def _asked(last: int | None) -> Callable[[], bool]:
    questions = 0

    def is_cancelled() -> bool:
        nonlocal questions
        questions += 1
        return last is not None and questions >= last

    return is_cancelled


@contextmanager
def _short_of_memory(trial: RankTrial, is_victim: bool) -> Iterator[None]:
    train, calls = Decoder.train, 0
    _refused.clear()

    def short(self: Decoder, batch: PackedBatch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > trial.micro_batches_before and sum(batch.lengths) > trial.most_tokens_of_the_second:
            _refused.append(sum(batch.lengths))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return train(self, batch)

    if is_victim:
        Decoder.train = short  # type: ignore[method-assign]
    try:
        yield
    finally:
        Decoder.train = train  # type: ignore[method-assign]
