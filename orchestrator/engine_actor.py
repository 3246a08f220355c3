"""The process of one engine: it holds the base model, and every trial in it has a thread.

`orchestrator.engines` makes Ray actors of this class; the class itself knows nothing of Ray.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.conversation import Conversation, Ended, Word
from orchestrator.loading import load_rows
from trials.checkpoints import choose_checkpoint
from trials.command_line import quiet_libraries
from trials.config import TrialConfig
from trials.records import EvalPoint, Origin, TrialFolder
from trials.tracking import wandb_is_wanted

if TYPE_CHECKING:
    from trials.engine.engine import Engine
    from trials.supervisor import Decision

_OPENING_FACTOR = 4.0
"""Reading rows, loading a base model and compiling kernels may take so many times as long as a step."""


class EngineActor:
    """Runs the trials that it's given, so many at once as it has slots; its methods may be called from any thread.

    `cpu_threads` are torch's where there is no GPU; None leaves them as they are.
    """

    def __init__(self, slots: int, cpu_threads: int | None) -> None:
        quiet_libraries()
        self._slots = threading.Semaphore(slots)
        self._cpu_threads = cpu_threads
        self._conversations: dict[str, Conversation] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._engine: Engine | None = None
        self._opening = threading.Lock()
        self._opening_since: float | None = None

    def ready(self) -> int:
        """Its process id, as soon as the process is there."""
        return os.getpid()

    def seconds_since_progress(self) -> float | None:
        """Since whoever is at work here, and silent longest, got on; None: nobody is. Opening may take longer."""
        opening_since = self._opening_since
        if opening_since is not None:
            return (time.monotonic() - opening_since) / _OPENING_FACTOR
        return None if self._engine is None else self._engine.seconds_since_progress()

    def begin(self, assignment: Mapping[str, Any]) -> None:
        """Starts one trial in a thread; `assignment` is what `orchestrator.tuner` made of the conductor's.

        A trial that was here before, and is still on its way out, is waited for first: only one may write to a folder.
        """
        trial_id, conversation = assignment["trial_id"], Conversation()
        # A daemon: what it writes is whole at any moment, and nobody waits for it when the search ends.
        thread = threading.Thread(
            target=self._run, args=(assignment, conversation, self._threads.get(trial_id)), daemon=True
        )
        before = self._conversations.get(trial_id)
        if before is not None:
            before.break_off()
        self._conversations[trial_id], self._threads[trial_id] = conversation, thread
        thread.start()

    def next_word(self, trial_id: str) -> Word:
        """Waits for what the trial says next; a trial that isn't here has ended."""
        conversation = self._conversations.get(trial_id)
        return Ended() if conversation is None else conversation.next_word()

    def go_on(self, trial_id: str) -> None:
        """Lets a trial go on after an evaluation."""
        conversation = self._conversations.get(trial_id)
        if conversation is not None:
            conversation.answer(goes_on=True)

    def release(self, trial_id: str) -> None:
        """Stops a trial, if it's still here: at once if it waits for its word, else after the step in work.

        Waits until it's gone, so that nothing of it writes to its folder any more.
        """
        conversation, thread = self._conversations.pop(trial_id, None), self._threads.get(trial_id)
        if conversation is not None:
            conversation.break_off()
        if thread is not None:
            thread.join()

    def _run(self, assignment: Mapping[str, Any], conversation: Conversation, earlier: threading.Thread | None) -> None:
        if earlier is not None:
            earlier.join()
        error, is_lost = None, False
        try:
            with self._slots:
                if not conversation.is_broken_off:
                    self._run_trial(assignment, conversation)
        except Exception as problem:
            error, is_lost = traceback.format_exc(), _is_lost(problem)
        conversation.end(error)
        if error is not None and (is_lost or self._has_broken_down()):
            # Every later trial in this process would fail as well. Ray starts a new one.
            os._exit(1)

    def _run_trial(self, assignment: Mapping[str, Any], conversation: Conversation) -> None:
        from trials.supervisor import Decision, unheard
        from trials.training import use_threads

        config = TrialConfig.model_validate_json(assignment["config"])
        logs = wandb_is_wanted(config.tracking)
        config = self._adapted(config)
        use_threads(config.machine)
        with self._opening:
            self._opening_since = time.monotonic()
            try:
                tokenizer, data = load_rows(config.model, config.data, assignment["fingerprint"])
                engine = self._opened(config)
            finally:
                self._opening_since = None

        def on_eval(point: EvalPoint) -> Decision:
            return Decision.GO_ON if conversation.ask(point) else Decision.STOP

        folder = TrialFolder(Path(assignment["folder"]))
        if assignment["origin"] == Origin.BASE.value:
            engine.evaluate_base(config, data, tokenizer, folder, on_eval)
        else:
            engine.run_trial(
                config,
                data,
                tokenizer,
                folder,
                on_eval,
                assignment["stop_at"],
                choose_checkpoint(folder.path, None) if assignment["resumes"] else None,
                is_called_off=lambda: conversation.is_broken_off,
                on_log=conversation.say if logs else unheard,
            )

    def _opened(self, config: TrialConfig) -> Engine:
        """The engine, which all trials of a search share: they have one base model and one machine."""
        if self._engine is None:
            from trials.engine.engine import Engine

            self._engine = Engine(config.model, config.machine)
        return self._engine

    def _has_broken_down(self) -> bool:
        return self._engine is not None and self._engine.has_ended

    def _adapted(self, config: TrialConfig) -> TrialConfig:
        """The configuration in this process: threads are the engine's, and the trial's W&B run is its holder's."""
        machine = config.machine.model_copy(update={"cpu_threads": self._cpu_threads})
        tracking = config.tracking.model_copy(update={"wandb": False})
        return config.model_copy(update={"machine": machine, "tracking": tracking})


def _is_lost(error: Exception) -> bool:
    """Whether nothing can be relied on any more that this process does on its GPU, as after an illegal access."""
    import torch

    from trials.engine.breakdown import is_breakdown

    if is_breakdown(error):
        return True
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
