"""Split of optimizer steps into micro-batches that fit into memory, found by trying; for the TRL backend.

The effective batch, and with it the losses, stay the same. Ever smaller micro-batches come first. Then all of them come
again with activations recomputed (arXiv 1604.06174), which takes a third longer.
"""

from __future__ import annotations

import gc
import logging
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from trials.config import Machine, TrialConfig
from trials.model.architecture import model_shape
from trials.model.loading import compute_dtype
from trials.model.memory_estimate import estimate_memory
from trials.records.checkpoints import resumed_timer
from trials.records.memory_report import Attempt, MemoryReport, read_memory_report, write_memory_report
from trials.records.rewind import restore_newest_checkpoint
from trials.records.trial_dir import Ending, TrialDir, read_trial
from trials.schedule import micro_batch_rows
from trials.state import TrialState
from trials.training.outcome import TrialInterrupted
from trials.training.training_run import TrainingRun
from trials.trl.dry_run import LongestRows
from trials.trl.sampler import rows_of_a_rank

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchSetting:
    """Split of an optimizer step, and whether activations are recomputed."""

    rows: int
    """Rows of a micro-batch."""
    recomputation: bool

    def __str__(self) -> str:
        """Return the setting in words, for log messages."""
        return f"{self.rows} rows at once{' and recomputed activations' if self.recomputation else ''}"

    @staticmethod
    def of(attempt: Attempt) -> BatchSetting:
        """Return the setting of an attempt."""
        return BatchSetting(attempt.rows, attempt.recomputation)

    def applied(self, config: TrialConfig) -> TrialConfig:
        """Return the trial's configuration with this setting."""
        update = {"micro_batch_rows": self.rows, "gradient_checkpointing": self.recomputation}
        return config.model_copy(update={"machine": config.machine.model_copy(update=update)})


def batch_settings(step_rows: int, longest_row: int, machine: Machine) -> list[BatchSetting]:
    """Return all settings, from what the machine's settings ask for to what takes the least memory.

    `step_rows` are the rows that one process has of an optimizer step.
    """
    rows = [micro_batch_rows(step_rows, longest_row, machine)]
    while rows[-1] > 1:
        rows.append(max(less for less in range(1, rows[-1] // 2 + 1) if step_rows % less == 0))
    kinds = (True,) if machine.gradient_checkpointing else (False, True)
    return [BatchSetting(each, recomputation) for recomputation in kinds for each in rows]


def still_to_try(splits: Sequence[BatchSetting], known: MemoryReport | None) -> list[BatchSetting]:
    """Return the settings that may fit, by the memory report from before the trial was paused or cut off.

    `known` is None if there is no such report. At least one setting is returned.
    """
    if known is None:
        return list(splits)
    latest = BatchSetting(known.micro_batch_rows, known.recomputation)
    if latest not in splits:
        return list(splits)
    first = splits.index(latest)
    ran_out = any(not last.fits and BatchSetting.of(last) == latest for last in known.tried[-1:])
    return list(splits[min(first + ran_out, len(splits) - 1) :])


def free_memory() -> None:
    """Free the memory of models that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class BatchSizeFinder:
    """Batch settings of one trial, tried one after the other until the trial fits into memory."""

    def __init__(self, run: TrainingRun) -> None:
        self._folder = run.folder
        config, train = run.config, run.data.train
        rows = rows_of_a_rank(config.hyperparameters.effective_batch, run.ranks)
        splits = batch_settings(rows, train.longest, config.machine)
        known = run.ranks.on_rank_zero(lambda: read_memory_report(self._folder.path))
        self._left = still_to_try(splits, known)
        self._tried = list(known.tried) if known else []
        self._longest = train.longest_rows(self._left[0].rows * train.longest)
        self._evaluated = run.data.eval.longest_rows(config.evaluation.batch_rows * run.data.eval.longest)
        self._run = run
        self.has_begun = False
        """Whether the current setting has got as far as training."""
        self.has_fitted = False
        """Whether its largest micro-batch has fitted into memory."""

    @property
    def run(self) -> TrainingRun:
        """Training run with the current setting."""
        return replace(self._run, config=self._left[0].applied(self._run.config))

    @property
    def worst_rows(self) -> LongestRows:
        """Longest rows of the trial for the current setting."""
        evaluated = self._evaluated[: self._run.config.evaluation.batch_rows]
        return LongestRows(self._longest[: self._left[0].rows], evaluated)

    def begins(self) -> None:
        """Record that memory depends on the setting from now on, and reset the peak."""
        self.has_begun = True
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def fits(self) -> None:
        """Record that the largest micro-batch was tried, and fitted."""
        self.has_fitted = True
        self._note(self._folder, fits=True)

    def ran_out(self) -> bool:
        """Go to the next setting after memory ran out; return whether there is one.

        The trial is then back at its newest checkpoint or its beginning. Also false if memory ran out before training
        began, or if the trial has ended. Called on every rank.
        """
        self._note(self._folder, fits=False)
        has_ended = self._run.ranks.on_rank_zero(lambda: read_trial(self._folder.path).ending is not None)
        if not self.has_begun or len(self._left) == 1 or has_ended:
            return False
        free_memory()
        logger.warning("out of memory with %s; going on with %s", *self._left[:2])
        del self._left[0]
        self.has_begun = self.has_fitted = False
        checkpoint = self._run.ranks.on_rank_zero(lambda: restore_newest_checkpoint(read_trial(self._folder.path)))
        self._run = replace(self._run, checkpoint=checkpoint, timer=resumed_timer(checkpoint))
        return True

    def cut_off(self) -> TrialInterrupted:
        """Record that memory ran out while other ranks wait for this one, and return the error to raise.

        All processes must be started again. They continue with the next setting; without one the trial ends. The first
        rank can't write that, because it waits too.
        """
        folder = TrialDir(self._folder.path)
        with suppress(FileNotFoundError):  # another rank, whose memory ran out too, writes the same at this moment
            self._note(folder, fits=False)
        if len(self._left) == 1:
            folder.end(Ending(TrialState.OUT_OF_MEMORY, f"with {self._left[0]}, and nothing takes less"))
        logger.error("out of memory with %s, while other processes wait for this one's part of a step", self._left[0])
        return TrialInterrupted(
            "memory ran out in the middle of a step. The trial goes on with less: --resume "
            f"{shlex.quote(str(folder.path))}"
        )

    def _note(self, folder: TrialDir, *, fits: bool) -> None:
        split = self._left[0]
        self._tried.append(Attempt(split.rows, self.worst_rows.tokens, split.recomputation, fits))
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        use = MemoryReport(self._predicted_bytes(split), peak, split.rows, split.recomputation, tuple(self._tried))
        write_memory_report(folder, use)

    def _predicted_bytes(self, split: BatchSetting) -> int | None:
        config = self._run.config
        base = model_shape(config.model.name, config.model.revision)
        longest = split.rows * max(self._run.data.train.longest, 1)
        itemsize = compute_dtype(config.model).itemsize
        need = estimate_memory(
            config, base, longest, itemsize=itemsize, in_engine=False, is_recomputed=split.recomputation
        )
        return None if need is None else need.total_bytes
