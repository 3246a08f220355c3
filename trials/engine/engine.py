"""Engine of one process: one resident base model on which many trials train at the same time."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from trials.config import Machine, ModelSettings, TrialConfig
from trials.data.dataset import TrialData
from trials.data.tokenization import TokenizedRow
from trials.engine.memory.allocator import use_expandable_segments
from trials.engine.memory.manager import footprint_of
from trials.engine.memory.oom_history import TrialFootprint
from trials.engine.model.frozen_base import freeze
from trials.engine.runtime.adapter_model import EngineModel
from trials.engine.runtime.step_loop import StepLoop
from trials.engine.runtime.trial_thread import EngineTrial
from trials.engine.runtime.warmup import compile_kernels
from trials.errors import ModelError, first_line
from trials.model.loading import compute_dtype
from trials.model.memory_plan import MOST_TOKENS
from trials.model.quantized_cache import load_quantized_base
from trials.records.checkpoints import Checkpoint, resumed_timer
from trials.records.trial_dir import Ending, EvalPoint, TrialDir
from trials.system.distributed import ALONE, ProcessGroup
from trials.system.oom import is_out_of_memory
from trials.training.evaluation_loop import Decision, OnEval, OnLog, TrainingRun, never, unheard
from trials.training.outcome import evaluate_base_model, run_and_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SWITCH_SECONDS = 5e-5


class Engine:
    """Trainer of many trials on one base model in this process; its methods may be called from many threads at once."""

    def __init__(self, settings: ModelSettings, machine: Machine, ranks: ProcessGroup = ALONE) -> None:
        """Load the base model.

        With more than one of `ranks`, each has an engine, and all are given the same trials, one after the other.

        Raises:
            ModelError: If the model can't be loaded, doesn't fit into memory, or has layers that the engine doesn't
                know.
        """
        # The computing thread releases Python's lock in every torch operation. With the default switch interval it
        # would wait up to 5 ms each time to get the lock back from a busy trial thread.
        sys.setswitchinterval(_SWITCH_SECONDS)
        use_expandable_segments()
        self._loop = _opened(settings, machine)
        self._ranks = replace(ranks, resting=self._loop.heartbeat.resting)
        if self._loop.frozen.device.type == "cuda":
            compile_kernels(self._loop)
        self._rows_lock = threading.Lock()
        self._rows: Sequence[TokenizedRow] = ()
        self._fingerprint: str | None = None

    def run_trial(
        self,
        config: TrialConfig,
        data: TrialData,
        tokenizer: PreTrainedTokenizerBase,
        folder: TrialDir,
        on_eval: OnEval,
        stop_at: float = math.inf,
        checkpoint: Checkpoint | None = None,
        is_called_off: Callable[[], bool] = never,
        on_log: OnLog = unheard,
    ) -> Ending | None:
        """Train one trial; arguments, result and files are those of `trials.trl.backend.run_trial`.

        Once `is_called_off` returns True, the trial ends after the current optimizer step and returns None. `on_log`
        receives what is logged between evaluations.
        """
        timer = resumed_timer(checkpoint)
        asked = self._asked(on_eval)
        job = TrainingRun(config, data, folder, asked, stop_at, checkpoint, timer, is_called_off, on_log, self._ranks)
        with self._loop.heartbeat.working():
            return run_and_record(folder, lambda: self._in_its_memory(job, tokenizer), self._ranks)

    def evaluate_base(
        self,
        config: TrialConfig,
        data: TrialData,
        tokenizer: PreTrainedTokenizerBase,
        folder: TrialDir,
        on_eval: OnEval,
    ) -> Ending:
        """Evaluate the base model; arguments, result and files are those of `trials.trl.backend.evaluate_base`."""
        with self._loop.heartbeat.working(), ExitStack() as leaving:

            def trained_model() -> EngineModel:
                manager = self._memory_for(TrialFootprint(0, data.eval.longest, MOST_TOKENS), id(leaving))
                leaving.enter_context(manager)
                return EngineModel(self._loop, config, self._eval_rows(data), None, self._ranks)

            return evaluate_base_model(
                trained_model, config, data, tokenizer, folder, self._asked(on_eval), self._ranks
            )

    @property
    def has_ended(self) -> bool:
        """Whether the engine was closed or has failed through no trial's fault; it refuses trials from then on."""
        return self._loop.has_ended

    def seconds_since_progress(self) -> float | None:
        """Return the seconds since the oldest of the threads' last heartbeats; None: no thread has work.

        Counted are the engine's own thread and those of its trials, each while it has work. A trial that waits for the
        engine or for `on_eval` isn't counted.
        """
        return self._loop.heartbeat.seconds_since_progress()

    def close(self) -> None:
        """End the engine; trials that still train are interrupted."""
        self._loop.close()

    def _in_its_memory(self, job: TrainingRun, tokenizer: PreTrainedTokenizerBase) -> Ending | None:
        footprint = footprint_of(job.config.hyperparameters, job.data, self._loop.frozen, self._ranks.world_size)
        with self._loop.fatal_gpu_errors(), self._memory_for(footprint, id(job)):
            return EngineTrial(job, tokenizer, self._loop, self._eval_rows(job.data)).run()

    @contextmanager
    def _memory_for(self, footprint: TrialFootprint, key: int) -> Iterator[None]:
        with ExitStack() as leaving:

            def enter() -> None:
                self._loop.admit(key, footprint)
                leaving.callback(self._loop.release, key)

            self._ranks.all_gather(enter)
            yield

    def _asked(self, on_eval: OnEval) -> OnEval:
        """Wrap `on_eval` so that the time it takes doesn't count as a hanging trial."""

        def asked(point: EvalPoint) -> Decision:
            with self._loop.heartbeat.resting():
                return on_eval(point)

        return asked

    def _eval_rows(self, data: TrialData) -> Sequence[TokenizedRow]:
        """Return the eval rows, which are read once for all trials on the same data."""
        with self._rows_lock:
            if data.fingerprint != self._fingerprint:
                self._rows, self._fingerprint = list(data.eval.rows), data.fingerprint
            return self._rows


def _opened(settings: ModelSettings, machine: Machine) -> StepLoop:
    try:
        return StepLoop(freeze(load_quantized_base(settings), compute_dtype(settings)), machine)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    # Outside of the `except` block, because the error's frames keep the base model in memory.
    raise ModelError(
        f"there isn't memory for the base model {settings.name!r} and micro-steps of a single row: {reason}. End other "
        "processes that use this GPU, allow more in machine.gpu_memory_gib, or choose a smaller model."
    )
