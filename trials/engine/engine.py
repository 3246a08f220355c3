"""Engine of one process: one resident base model on which many trials train at the same time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from trials.config import Machine, ModelSettings
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
from trials.records.trial_dir import Ending
from trials.system.distributed import ProcessGroup
from trials.system.oom import is_out_of_memory
from trials.training.outcome import evaluate_base_model, run_and_record
from trials.training.training_run import TrainingRun

_SWITCH_SECONDS = 5e-5


class Engine:
    """Trainer of many trials on one base model in this process; its methods may be called from many threads at once."""

    def __init__(self, settings: ModelSettings, machine: Machine) -> None:
        """Load the base model.

        If several ranks train a trial, each has an engine, and all are given the same trials, one after the other.

        Raises:
            ModelError: If the model can't be loaded, doesn't fit into memory, or has layers that the engine doesn't
                know.
        """
        # The computing thread releases Python's lock in every torch operation. With the default switch interval it
        # would wait up to 5 ms each time to get the lock back from a busy trial thread.
        sys.setswitchinterval(_SWITCH_SECONDS)
        use_expandable_segments()
        self._loop = _opened(settings, machine)
        if self._loop.frozen.device.type == "cuda":
            compile_kernels(self._loop)
        self._rows_lock = threading.Lock()
        self._rows: Sequence[TokenizedRow] = ()
        self._fingerprint: str | None = None

    def run(self, run: TrainingRun) -> Ending | None:
        """Train one trial; see `trials.training.training_run.TrialBackend`."""
        watched = run.resting_in(self._loop.heartbeat)
        with self._loop.heartbeat.working():
            return run_and_record(watched, lambda: self._in_its_memory(watched))

    def evaluate_base(self, run: TrainingRun) -> Ending:
        """Evaluate the base model; see `trials.training.training_run.TrialBackend`."""
        watched = run.resting_in(self._loop.heartbeat)
        with self._loop.heartbeat.working(), ExitStack() as leaving:

            def trained_model() -> EngineModel:
                footprint = TrialFootprint(0, run.data.eval.longest, MOST_TOKENS)
                leaving.enter_context(self._memory_for(footprint, id(leaving), watched.ranks))
                return EngineModel(self._loop, run.config, self._eval_rows(run.data), None, watched.ranks)

            return evaluate_base_model(watched, trained_model)

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

    def _in_its_memory(self, run: TrainingRun) -> Ending | None:
        footprint = footprint_of(run.config.hyperparameters, run.data, self._loop.frozen, run.ranks.world_size)
        with self._loop.fatal_gpu_errors(), self._memory_for(footprint, id(run), run.ranks):
            return EngineTrial(run, self._loop, self._eval_rows(run.data)).run()

    @contextmanager
    def _memory_for(self, footprint: TrialFootprint, key: int, ranks: ProcessGroup) -> Iterator[None]:
        with ExitStack() as leaving:

            def enter() -> None:
                self._loop.admit(key, footprint)
                leaving.callback(self._loop.release, key)

            ranks.all_gather(enter)
            yield

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
