"""The engine: one resident base model on which trials come and go, side by side."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from trials.checkpoints import Checkpoint, resumed_stopwatch
from trials.config import Machine, ModelSettings, TrialConfig
from trials.data import TrialData
from trials.engine.allocator import use_expandable_segments
from trials.engine.experience import Guest
from trials.engine.frozen import freeze
from trials.engine.loop import Loop
from trials.engine.planning import MOST_TOKENS
from trials.engine.program import Program
from trials.engine.room import guest_of
from trials.engine.subject import EngineSubject
from trials.engine.warm_up import warm_up
from trials.errors import ModelError, first_line
from trials.memory import is_out_of_memory
from trials.model import compute_dtype
from trials.outcomes import evaluate_untrained, recorded
from trials.ranks import ALONE, Ranks
from trials.records import Ending, EvalPoint, TrialFolder
from trials.saved_base import load_resident_base
from trials.supervisor import Decision, Job, OnEval, OnLog, never, unheard
from trials.tokenization import TokenizedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SWITCH_SECONDS = 5e-5


class Engine:
    """Trains many trials of one base model in this process; its methods may be called from many threads at once."""

    def __init__(self, settings: ModelSettings, machine: Machine, ranks: Ranks = ALONE) -> None:
        """Loads the base model. Raises `ModelError` if it can't be, has no room, or its layers are unknown.

        With other `ranks`, each of which has an engine, all are given the same trials, one after the other.
        """
        # Whoever computes gives up Python's lock with every operation, and would wait 5 ms each time to have it back
        # from a trial's thread that is at work.
        sys.setswitchinterval(_SWITCH_SECONDS)
        use_expandable_segments()
        self._loop = _opened(settings, machine)
        self._ranks = replace(ranks, resting=self._loop.pulse.resting)
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
        asked = self._asked(on_eval)
        job = Job(config, data, folder, asked, stop_at, checkpoint, stopwatch, is_called_off, on_log, self._ranks)
        with self._loop.pulse.working():
            return recorded(folder, lambda: self._in_its_room(job, tokenizer), self._ranks)

    def evaluate_base(
        self,
        config: TrialConfig,
        data: TrialData,
        tokenizer: PreTrainedTokenizerBase,
        folder: TrialFolder,
        on_eval: OnEval,
    ) -> Ending:
        """As `trials.training.evaluate_base`."""
        with self._loop.pulse.working(), ExitStack() as leaving:

            def subject() -> EngineSubject:
                room = self._room_for(Guest(0, data.eval.longest, MOST_TOKENS), id(leaving))
                leaving.enter_context(room)
                return EngineSubject(self._loop, config, self._eval_rows(data), None, self._ranks)

            return evaluate_untrained(subject, config, data, tokenizer, folder, self._asked(on_eval), self._ranks)

    @property
    def has_ended(self) -> bool:
        """Whether it was closed, or has broken down through no trial's fault; it refuses trials from then on."""
        return self._loop.has_ended

    def seconds_since_progress(self) -> float | None:
        """How long the thread that has been silent longest has been; None: nobody trains or evaluates.

        Of the engine's own thread and those of its trials, each while it has something to do: a trial that waits for
        the engine's turn, or for the word of `on_eval`, isn't counted.
        """
        return self._loop.pulse.seconds_since_progress()

    def close(self) -> None:
        """Ends the engine; trials that still train are cut off."""
        self._loop.close()

    def _in_its_room(self, job: Job, tokenizer: PreTrainedTokenizerBase) -> Ending | None:
        guest = guest_of(job.config.hyperparameters, job.data, self._loop.frozen, self._ranks.count)
        with self._loop.relying_on_gpu(), self._room_for(guest, id(job)):
            return Program(job, tokenizer, self._loop, self._eval_rows(job.data)).run()

    @contextmanager
    def _room_for(self, guest: Guest, key: int) -> Iterator[None]:
        with ExitStack() as leaving:

            def enter() -> None:
                self._loop.enter(key, guest)
                leaving.callback(self._loop.leave, key)

            self._ranks.together(enter)
            yield

    def _asked(self, on_eval: OnEval) -> OnEval:
        """Whoever is asked may think it over for long: the trial doesn't hang."""

        def asked(point: EvalPoint) -> Decision:
            with self._loop.pulse.resting():
                return on_eval(point)

        return asked

    def _eval_rows(self, data: TrialData) -> Sequence[TokenizedRow]:
        """Read once for all trials."""
        with self._rows_lock:
            if data.fingerprint != self._fingerprint:
                self._rows, self._fingerprint = list(data.eval.rows), data.fingerprint
            return self._rows


def _opened(settings: ModelSettings, machine: Machine) -> Loop:
    try:
        return Loop(freeze(load_resident_base(settings), compute_dtype(settings)), machine)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    # Only here, where the error's frames and the base model in them are gone.
    raise ModelError(
        f"there isn't memory for the base model {settings.name!r} and micro-steps of a single row: {reason}. End other "
        "processes that use this GPU, allow more in machine.gpu_memory_gib, or choose a smaller model."
    )
