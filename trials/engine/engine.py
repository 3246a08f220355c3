"""The engine: one resident base model on which trials come and go, side by side."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trials.checkpoints import Checkpoint, resumed_stopwatch
from trials.config import Machine, ModelSettings, TrialConfig
from trials.data import TrialData
from trials.engine.frozen import freeze
from trials.engine.loop import Loop
from trials.engine.program import Program
from trials.engine.room import guest_of
from trials.engine.subject import EngineSubject
from trials.engine.warm_up import warm_up
from trials.model import compute_dtype
from trials.outcomes import evaluate_untrained, recorded
from trials.records import Ending, TrialFolder
from trials.saved_base import load_resident_base
from trials.supervisor import Job, OnEval, OnLog, never, unheard
from trials.tokenization import TokenizedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SWITCH_SECONDS = 5e-5


class Engine:
    """Trains many trials of one base model in this process; its methods may be called from many threads at once."""

    def __init__(self, settings: ModelSettings, machine: Machine) -> None:
        """Loads the base model. Raises `ModelError` if that can't be done, or its layers are unknown."""
        # Whoever computes gives up Python's lock with every operation, and would wait 5 ms each time to have it back
        # from a trial's thread that is at work.
        sys.setswitchinterval(_SWITCH_SECONDS)
        # Memory is cut anew while the engine lives; without this the pieces wouldn't join again.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        self._loop = Loop(freeze(load_resident_base(settings), compute_dtype(settings)), machine)
        if self._loop.frozen.device.type == "cuda":
            warm_up(self._loop)
        self._rows_lock = threading.Lock()
        self._rows: Sequence[TokenizedRow] = ()
        self._fingerprint: str | None = None

    def run_trial(
        self,
        config: TrialConfig,
        data: TrialData,
        tokenizer: PreTrainedTokenizerBase,
        folder: TrialFolder,
        on_eval: OnEval,
        stop_at: float = math.inf,
        checkpoint: Checkpoint | None = None,
        is_called_off: Callable[[], bool] = never,
        on_log: OnLog = unheard,
    ) -> Ending | None:
        """As `trials.training.run_trial`, and in the same files.

        A trial that `is_called_off` leaves after the optimizer step in work, as one that the callback stopped. `on_log`
        is told what is logged between evaluations.
        """
        stopwatch = resumed_stopwatch(checkpoint)
        job = Job(config, data, folder, on_eval, stop_at, checkpoint, stopwatch, is_called_off, on_log)
        return recorded(folder, lambda: self._in_its_room(job, tokenizer))

    def evaluate_base(
        self,
        config: TrialConfig,
        data: TrialData,
        tokenizer: PreTrainedTokenizerBase,
        folder: TrialFolder,
        on_eval: OnEval,
    ) -> Ending:
        """As `trials.training.evaluate_base`."""
        return evaluate_untrained(
            lambda: EngineSubject(self._loop, config, self._eval_rows(data), None),
            config,
            data,
            tokenizer,
            folder,
            on_eval,
        )

    @property
    def has_ended(self) -> bool:
        """Whether it was closed, or has broken down through no trial's fault; it refuses trials from then on."""
        return self._loop.has_ended

    def close(self) -> None:
        """Ends the engine; trials that still train are cut off."""
        self._loop.close()

    def _in_its_room(self, job: Job, tokenizer: PreTrainedTokenizerBase) -> Ending | None:
        self._loop.enter(id(job), guest_of(job.config.hyperparameters, job.data, self._loop.frozen))
        try:
            return Program(job, tokenizer, self._loop, self._eval_rows(job.data)).run()
        finally:
            self._loop.leave(id(job))

    def _eval_rows(self, data: TrialData) -> Sequence[TokenizedRow]:
        """Read once for all trials."""
        with self._rows_lock:
            if data.fingerprint != self._fingerprint:
                self._rows, self._fingerprint = list(data.eval.rows), data.fingerprint
            return self._rows
