"""Trial runner of a process: runs trials with rows and an engine that are opened once. Does not import Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.loading import load_rows
from orchestrator.execution.segment_log import log_evaluation, logged_segment
from orchestrator.execution.watchdog import ending_if_hung
from orchestrator.storage.working_copy import working_copy_of
from trials.config import TrialConfig
from trials.records.checkpoints import choose_checkpoint
from trials.records.trial_dir import EvalPoint, Origin, TrialDir
from trials.tracking.trial_run import wandb_is_wanted, without_wandb

if TYPE_CHECKING:
    from trials.engine.engine import Engine
    from trials.system.distributed import ProcessGroup
    from trials.training.evaluation_loop import Decision, OnEval, OnLog

_OPENING_FACTOR = 4.0
"""Reading rows, loading the base model and compiling kernels may take so many times the limit for a step."""


class TrialRunner:
    """Runs trials in the engine, several at once from threads, or with TRL if the request says so.

    `cpu_threads` is the number of torch's threads if there is no GPU; None leaves it as it is. `ranks` is the group of
    processes that run the same trials at the same time; None: this process is alone.
    """

    def __init__(self, cpu_threads: int | None, ranks: ProcessGroup | None = None) -> None:
        self._cpu_threads = cpu_threads
        self._given_ranks = ranks
        self._engine: Engine | None = None
        self._opening = threading.Lock()
        self._opening_since: float | None = None

    def seconds_since_progress(self) -> float | None:
        """Return the seconds since the longest-silent thread made progress; None: no thread has work.

        While rows and engine are opened, it is the time since the opening began, divided by `_OPENING_FACTOR`.
        """
        opening_since = self._opening_since
        if opening_since is not None:
            return (time.monotonic() - opening_since) / _OPENING_FACTOR
        return None if self._engine is None else self._engine.seconds_since_progress()

    @property
    def is_unusable(self) -> bool:
        """Whether the engine has ended, so that every later trial in this process would fail."""
        return self._engine is not None and self._engine.has_ended

    def run(self, request: TrialRequest, on_eval: OnEval, is_called_off: Callable[[], bool], on_log: OnLog) -> None:
        """Run one trial. Raises the error that ended it."""
        is_first = self._ranks.is_first
        with working_copy_of(request.folder, request.remote, is_kept=is_first) as copy:
            if not is_first:  # only the first rank writes to the folder, and reports
                self._run(request, copy.path, on_eval, is_called_off, on_log)
                return
            kept = copy.pushed_before(on_eval)

            def log_and_ask(point: EvalPoint) -> Decision:
                log_evaluation(request.trial_id, point)
                return kept(point)

            with logged_segment(copy.path, resumes=request.resumes):
                self._run(request, copy.path, log_and_ask, is_called_off, on_log)

    def _run(
        self,
        request: TrialRequest,
        path: Path,
        on_eval: OnEval,
        is_called_off: Callable[[], bool],
        on_log: OnLog,
    ) -> None:
        from trials.system.torch_setup import use_threads
        from trials.training.evaluation_loop import unheard

        config = request.config
        logs = wandb_is_wanted(config.tracking) and self._ranks.is_first
        config = self._adapted(config)
        use_threads(config.machine)
        heard = on_log if logs else unheard
        folder = TrialDir(path, is_written=self._ranks.is_first)
        if request.by_trl:
            self._run_under_trl(request, config, folder, on_eval, heard)
        else:
            self._run_in_engine(request, config, folder, on_eval, is_called_off, heard)

    def _run_in_engine(
        self,
        request: TrialRequest,
        config: TrialConfig,
        folder: TrialDir,
        on_eval: OnEval,
        is_called_off: Callable[[], bool],
        on_log: OnLog,
    ) -> None:
        with self._opening:
            self._opening_since = time.monotonic()
            try:
                tokenizer, data = load_rows(config.model, config.data, request.fingerprint)
                engine = self._opened(config)
            finally:
                self._opening_since = None
        if request.origin is Origin.BASE:
            engine.evaluate_base(config, data, tokenizer, folder, on_eval)
            return
        engine.run_trial(
            config,
            data,
            tokenizer,
            folder,
            on_eval,
            request.stop_at,
            choose_checkpoint(folder.path, None) if request.resumes else None,
            is_called_off=is_called_off,
            on_log=on_log,
        )

    def _run_under_trl(
        self, request: TrialRequest, config: TrialConfig, folder: TrialDir, on_eval: OnEval, on_log: OnLog
    ) -> None:
        from trials.trl.backend import evaluate_base, run_trial

        tokenizer, data = load_rows(config.model, config.data, request.fingerprint)
        with ending_if_hung(config.machine.step_limit_seconds) as watchdog:
            ranks = replace(self._ranks, resting=watchdog.resting)
            if request.origin is Origin.BASE:
                evaluate_base(config, data, tokenizer, folder, on_eval, ranks)
                return
            checkpoint = choose_checkpoint(folder.path, None) if request.resumes else None
            run_trial(config, data, tokenizer, folder, on_eval, request.stop_at, checkpoint, ranks, on_log)

    @property
    def _ranks(self) -> ProcessGroup:
        from trials.system.distributed import ALONE

        return self._given_ranks or ALONE

    def _opened(self, config: TrialConfig) -> Engine:
        """Return the engine, opened on the first call; all trials of a search share it and its base model."""
        if self._engine is None:
            from trials.engine.engine import Engine

            self._engine = Engine(config.model, config.machine, self._ranks)
        return self._engine

    def _adapted(self, config: TrialConfig) -> TrialConfig:
        """Return the configuration with this process's threads, and without W&B, which the trial's proxy writes to."""
        machine = config.machine.model_copy(update={"cpu_threads": self._cpu_threads})
        return without_wandb(config.model_copy(update={"machine": machine}))


def gpu_is_unusable(error: Exception) -> bool:
    """Whether this process can no longer use its GPU, as after an illegal memory access."""
    import torch

    from trials.engine.runtime.gpu_errors import is_fatal_gpu_error

    if is_fatal_gpu_error(error):
        return True
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
