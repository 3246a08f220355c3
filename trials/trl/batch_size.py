"""How a trial's optimizer steps are split into micro-batches so that they fit into memory: TRL's way, by trying.

The effective batch and with it the losses stay the same. First come ever smaller micro-batches, then all of them again
with activations recomputed (arXiv 1604.06174), which takes a third longer.
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
from trials.records.trial_dir import Ending, EndingKind, TrialDir, read_trial
from trials.schedule import micro_batch_rows
from trials.training.evaluation_loop import TrainingRun
from trials.training.outcome import TrialInterrupted
from trials.trl.dry_run import LongestRows
from trials.trl.sampler import rows_of_a_rank

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchSetting:
    """One way to run an optimizer step."""

    rows: int
    """Of a micro-batch."""
    recomputation: bool

    def __str__(self) -> str:
        """For people."""
        return f"{self.rows} rows at once{' and recomputed activations' if self.recomputation else ''}"

    @staticmethod
    def of(attempt: Attempt) -> BatchSetting:
        """The one that was tried."""
        return BatchSetting(attempt.rows, attempt.recomputation)

    def applied(self, config: TrialConfig) -> TrialConfig:
        """The trial, run so."""
        update = {"micro_batch_rows": self.rows, "gradient_checkpointing": self.recomputation}
        return config.model_copy(update={"machine": config.machine.model_copy(update=update)})


def batch_settings(step_rows: int, longest_row: int, machine: Machine) -> list[BatchSetting]:
    """From what the machine's settings ask for to what takes the least memory.

    `step_rows` are those that one process has of an optimizer step.
    """
    rows = [micro_batch_rows(step_rows, longest_row, machine)]
    while rows[-1] > 1:
        rows.append(max(less for less in range(1, rows[-1] // 2 + 1) if step_rows % less == 0))
    kinds = (True,) if machine.gradient_checkpointing else (False, True)
    return [BatchSetting(each, recomputation) for recomputation in kinds for each in rows]


def still_to_try(splits: Sequence[BatchSetting], known: MemoryReport | None) -> list[BatchSetting]:
    """Those that may fit, by what is known of the trial from before it was paused or cut off."""
    if known is None:
        return list(splits)
    latest = BatchSetting(known.micro_batch_rows, known.recomputation)
    if latest not in splits:
        return list(splits)
    first = splits.index(latest)
    ran_out = any(not last.fits and BatchSetting.of(last) == latest for last in known.tried[-1:])
    return list(splits[min(first + ran_out, len(splits) - 1) :])


class BatchSizeFinder:
    """The splits of one trial, one after the other, until it fits into memory."""

    def __init__(self, job: TrainingRun) -> None:
        self._folder = job.folder
        config, train = job.config, job.data.train
        rows = rows_of_a_rank(config.hyperparameters.effective_batch, job.ranks)
        splits = batch_settings(rows, train.longest, config.machine)
        known = job.ranks.on_rank_zero(lambda: read_memory_report(self._folder.path))
        self._left = still_to_try(splits, known)
        self._tried = list(known.tried) if known else []
        self._longest = train.longest_rows(self._left[0].rows * train.longest)
        self._evaluated = job.data.eval.longest_rows(config.evaluation.batch_rows * job.data.eval.longest)
        self._job = job
        self.has_begun = False
        """Whether the split that is tried has got as far as its first micro-step."""
        self.has_fitted = False
        """Whether its worst micro-step has fitted into memory."""

    @property
    def job(self) -> TrainingRun:
        """The trial, with its batches split so."""
        return replace(self._job, config=self._left[0].applied(self._job.config))

    @property
    def worst_rows(self) -> LongestRows:
        """Of the split that is tried."""
        evaluated = self._evaluated[: self._job.config.evaluation.batch_rows]
        return LongestRows(self._longest[: self._left[0].rows], evaluated)

    def begins(self) -> None:
        """What comes now takes memory by how batches are split."""
        self.has_begun = True
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def fits(self) -> None:
        """The worst micro-step was tried, and fitted."""
        self.has_fitted = True
        self._note(self._folder, fits=True)

    def ran_out(self) -> bool:
        """Memory didn't suffice. True: there is another split, and the trial has gone back to where it begins.

        Called on every rank.
        """
        self._note(self._folder, fits=False)
        has_ended = self._job.ranks.on_rank_zero(lambda: read_trial(self._folder.path).ending is not None)
        if not self.has_begun or len(self._left) == 1 or has_ended:
            return False
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("out of memory with %s; going on with %s", *self._left[:2])
        del self._left[0]
        self.has_begun = self.has_fitted = False
        checkpoint = self._job.ranks.on_rank_zero(lambda: restore_newest_checkpoint(read_trial(self._folder.path)))
        self._job = replace(self._job, checkpoint=checkpoint, timer=resumed_timer(checkpoint))
        return True

    def cut_off(self) -> TrialInterrupted:
        """Memory didn't suffice on this rank alone, and the others wait for it: all must be started again.

        They go on with the next split; without one the trial ends. The first rank can't write that down: it waits too.
        """
        folder = TrialDir(self._folder.path)
        with suppress(FileNotFoundError):  # another rank, whose memory ran out too, writes the same at this moment
            self._note(folder, fits=False)
        if len(self._left) == 1:
            folder.end(Ending(EndingKind.OUT_OF_MEMORY, f"with {self._left[0]}, and nothing takes less"))
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
        config = self._job.config
        base = model_shape(config.model.name, config.model.revision)
        longest = split.rows * max(self._job.data.train.longest, 1)
        itemsize = compute_dtype(config.model).itemsize
        need = estimate_memory(
            config, base, longest, itemsize=itemsize, in_engine=False, is_recomputed=split.recomputation
        )
        return None if need is None else need.total_bytes
