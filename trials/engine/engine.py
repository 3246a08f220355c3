"""The engine: one resident base model on which trials come and go, side by side."""

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
    """Trains many trials of one base model in this process; its methods may be called from many threads at once."""

    def __init__(self, settings: ModelSettings, machine: Machine, ranks: ProcessGroup = ALONE) -> None:
        """Loads the base model. Raises `ModelError` if it can't be, has no room, or its layers are unknown.

        With other `ranks`, each of which has an engine, all are given the same trials, one after the other.
        """
        # Whoever computes gives up Python's lock with every operation, and would wait 5 ms each time to have it back
        # from a trial's thread that is at work.
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
        """As `trials.trl.backend.run_trial`, and in the same files.

        A trial that `is_called_off` leaves after the optimizer step in work, as one that the callback stopped. `on_log`
        is told what is logged between evaluations.
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
        """As `trials.trl.backend.evaluate_base`."""
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
        """Whether it was closed, or has broken down through no trial's fault; it refuses trials from then on."""
        return self._loop.has_ended

    def seconds_since_progress(self) -> float | None:
        """How long the thread that has been silent longest has been; None: nobody trains or evaluates.

        Of the engine's own thread and those of its trials, each while it has something to do: a trial that waits for
        the engine's turn, or for the word of `on_eval`, isn't counted.
        """
        return self._loop.heartbeat.seconds_since_progress()

    def close(self) -> None:
        """Ends the engine; trials that still train are cut off."""
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
        """Whoever is asked may think it over for long: the trial doesn't hang."""

        def asked(point: EvalPoint) -> Decision:
            with self._loop.heartbeat.resting():
                return on_eval(point)

        return asked

    def _eval_rows(self, data: TrialData) -> Sequence[TokenizedRow]:
        """Read once for all trials."""
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
    # Only here, where the error's frames and the base model in them are gone.
    raise ModelError(
        f"there isn't memory for the base model {settings.name!r} and micro-steps of a single row: {reason}. End other "
        "processes that use this GPU, allow more in machine.gpu_memory_gib, or choose a smaller model."
    )
