"""Trial runner of a process: runs trials with rows and a backend that are opened once. Does not import Ray."""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.storage.working_copy import working_copy_of
from trials.config import DataSettings, ModelSettings, TrialConfig
from trials.console.logs import trial_log
from trials.console.troubles import only_reporting
from trials.data.dataset import TrialData, load_data
from trials.errors import DataError
from trials.records.checkpoints import choose_checkpoint
from trials.records.trial_dir import EvalPoint, Origin, TrialDir, read_trial
from trials.tracking.trial_run import wandb_is_wanted, without_wandb

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trials.system.distributed import ProcessGroup
    from trials.training.training_run import Decision, OnEval, OnLog, TrialBackend

logger = logging.getLogger(__name__)

_OPENING_FACTOR = 4.0
"""Reading rows, loading the base model and compiling kernels may take so many times the limit for a step."""


class TrialRunner:
    """Runs trials in the engine, several at once from threads, or one at a time with TRL if the request says so.

    `cpu_threads` is the number of torch's threads if there is no GPU; None leaves it as it is. `ranks` is the group of
    processes that run the same trials at the same time; None: this process is alone.
    """

    def __init__(self, cpu_threads: int | None, ranks: ProcessGroup | None = None) -> None:
        self._cpu_threads = cpu_threads
        self._given_ranks = ranks
        self._backend: TrialBackend | None = None
        self._opening = threading.Lock()
        self._opening_since: float | None = None

    def seconds_since_progress(self) -> float | None:
        """Return the seconds since the longest-silent thread made progress; None: no thread has work.

        While rows and backend are opened, it is the time since the opening began, divided by `_OPENING_FACTOR`.
        """
        opening_since = self._opening_since
        if opening_since is not None:
            return (time.monotonic() - opening_since) / _OPENING_FACTOR
        return None if self._backend is None else self._backend.seconds_since_progress()

    @property
    def is_unusable(self) -> bool:
        """Whether the backend has ended, so that every later trial in this process would fail."""
        return self._backend is not None and self._backend.has_ended

    def run(self, request: TrialRequest, on_eval: OnEval, is_cancelled: Callable[[], bool], on_log: OnLog) -> None:
        """Run one trial. Raises the error that ended it."""
        is_first = self._ranks.is_first
        with working_copy_of(request.folder, request.remote, is_kept=is_first) as copy:
            if not is_first:  # only the first rank writes to the folder, and reports
                self._run(request, copy.path, on_eval, is_cancelled, on_log)
                return
            kept = copy.pushed_before(on_eval)

            def log_and_ask(point: EvalPoint) -> Decision:
                log_evaluation(request.trial_id, point)
                return kept(point)

            with logged_segment(copy.path, resumes=request.resumes):
                self._run(request, copy.path, log_and_ask, is_cancelled, on_log)

    def _run(
        self,
        request: TrialRequest,
        path: Path,
        on_eval: OnEval,
        is_cancelled: Callable[[], bool],
        on_log: OnLog,
    ) -> None:
        from trials.system.torch_setup import use_threads
        from trials.training.training_run import TrainingRun, unheard

        logs = wandb_is_wanted(request.config.tracking) and self._ranks.is_first
        config = self._adapted(request.config)
        use_threads(config.machine)
        tokenizer, data, backend = self._opened(config, request)
        run = TrainingRun(
            config,
            data,
            tokenizer,
            TrialDir(path, is_written=self._ranks.is_first),
            on_eval,
            request.stop_at,
            choose_checkpoint(path, None) if request.resumes else None,
            is_cancelled,
            on_log if logs else unheard,
            self._ranks,
            finishes_at_stop=request.origin is Origin.FINAL,
        )
        if request.origin is Origin.BASE:
            backend.evaluate_base(run)
        else:
            backend.run(run)

    @property
    def _ranks(self) -> ProcessGroup:
        from trials.system.distributed import ALONE

        return self._given_ranks or ALONE

    def _opened(
        self, config: TrialConfig, request: TrialRequest
    ) -> tuple[PreTrainedTokenizerBase, TrialData, TrialBackend]:
        """Return tokenizer, rows and backend, opened on the first call; all trials of a search share them."""
        with self._opening:
            self._opening_since = time.monotonic()
            try:
                tokenizer, data = load_rows(config.model, config.data, request.fingerprint)
                if self._backend is None:
                    self._backend = _new_backend(config, by_trl=request.by_trl)
                return tokenizer, data, self._backend
            finally:
                self._opening_since = None

    def _adapted(self, config: TrialConfig) -> TrialConfig:
        """Return the configuration with this process's threads, and without W&B, which the trial's proxy writes to."""
        machine = config.machine.model_copy(update={"cpu_threads": self._cpu_threads})
        return without_wandb(config.model_copy(update={"machine": machine}))


@functools.lru_cache(maxsize=1)
def load_rows(
    model: ModelSettings, data: DataSettings, fingerprint: str | None
) -> tuple[PreTrainedTokenizerBase, TrialData]:
    """Return tokenizer and rows, the same for all trials of a search; to be called by one thread at a time.

    `fingerprint` None: it is not compared. Raises `DataError` if the rows are not those that the search began with.
    """
    from trials.model.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    loaded = load_data(data, tokenizer)
    if fingerprint is not None and loaded.fingerprint != fingerprint:
        raise DataError("the data or the tokenizer has changed since the search began. Restore it, and resume.")
    return tokenizer, loaded


@contextmanager
def logged_segment(folder: Path, *, resumes: bool) -> Iterator[None]:
    """Log begin and end of a segment, and whatever its thread logs inside, to the log file in `folder`."""
    with trial_log(folder):
        how = "goes on" if resumes else "begins"
        logger.info("trial %s %s in process %d on %s", folder.name, how, os.getpid(), socket.gethostname())
        try:
            yield
        except Exception:
            logger.exception("trial %s: an error ended it here", folder.name)
            raise
        with only_reporting("log"):
            ending = read_trial(folder).ending
            left = "it leaves, as its search says" if ending is None else f"{ending.kind.value}: {ending.reason}"
            logger.info("trial %s: %s", folder.name, left)


def log_evaluation(trial_id: str, point: EvalPoint) -> None:
    """Log one evaluation as a line."""
    speed = f", {point.tokens_per_second:,.0f} tokens/s" if point.tokens_per_second else ""
    logger.info(
        "trial %s at step %d, %s tokens: eval loss %.4f%s",
        *(trial_id, point.step, f"{point.tokens_seen:,}", point.eval_loss, speed),
    )


def _new_backend(config: TrialConfig, *, by_trl: bool) -> TrialBackend:
    if by_trl:
        from trials.trl.backend import TrlBackend

        return TrlBackend()
    from trials.engine.engine import Engine

    return Engine(config.model, config.machine)


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


def end_hung_process() -> NoReturn:
    """End this process, with the tracebacks of all threads on stderr. A thread that hangs cannot be ended otherwise."""
    sys.stderr.write("no progress within machine.step_limit_seconds: this process ends\n")
    faulthandler.dump_traceback(file=sys.__stderr__ or 2)
    os._exit(1)
