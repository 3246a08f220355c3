"""Worker process with one engine: it holds the base model, and runs every trial in a thread.

`orchestrator.execution.worker_pool` makes Ray actors of this class; the module itself does not import Ray.
"""

from __future__ import annotations

import os
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.channel import Finished, TrialChannel, Word
from orchestrator.execution.trial_runner import TrialRunner, gpu_is_unusable
from trials.cli import quiet_libraries
from trials.console.logs import redirect_output
from trials.console.troubles import TROUBLES
from trials.records.trial_dir import EvalPoint

if TYPE_CHECKING:
    from trials.training.training_run import Decision


class EngineWorker:
    """Runs trials, as many at once as it has slots; its methods may be called from any thread.

    `cpu_threads` is the number of torch's threads if there is no GPU; None leaves it as it is. `log` is a file for this
    process's output; None: the output is not redirected.
    """

    def __init__(self, slots: int, cpu_threads: int | None, log: Path | None = None) -> None:
        quiet_libraries()
        if log is not None:
            redirect_output(log)
        self._slots = threading.Semaphore(slots)
        self._runner = TrialRunner(cpu_threads)
        self._conversations: dict[str, TrialChannel] = {}
        self._threads: dict[str, threading.Thread] = {}

    def ready(self) -> int:
        """Return the process id; the call is answered as soon as the process has started."""
        return os.getpid()

    def seconds_since_progress(self) -> float | None:
        """Return `TrialRunner.seconds_since_progress`."""
        return self._runner.seconds_since_progress()

    def begin(self, request: TrialRequest) -> None:
        """Start one trial in a thread.

        The thread first waits for an earlier run of the trial that has not ended yet: only one may write to its folder.
        """
        trial_id, conversation = request.trial_id, TrialChannel()
        # A daemon: its files are consistent at any moment, and the end of the search must not wait for it.
        thread = threading.Thread(
            target=self._run, args=(request, conversation, self._threads.get(trial_id)), daemon=True
        )
        before = self._conversations.get(trial_id)
        if before is not None:
            before.close()
        self._conversations[trial_id], self._threads[trial_id] = conversation, thread
        thread.start()

    def next_message(self, trial_id: str) -> Word:
        """Wait for the trial's next message; for a trial that is not here, `Finished` at once."""
        conversation = self._conversations.get(trial_id)
        return Finished() if conversation is None else conversation.next_message()

    def resume(self, trial_id: str) -> None:
        """Let a trial go on after an evaluation."""
        conversation = self._conversations.get(trial_id)
        if conversation is not None:
            conversation.reply(goes_on=True)

    def release(self, trial_id: str) -> None:
        """Stop a trial if it is still here: at once if it waits for a reply, else after the current step.

        Waits until its thread has ended, so that it does not write to the trial's folder any more.
        """
        conversation, thread = self._conversations.pop(trial_id, None), self._threads.get(trial_id)
        if conversation is not None:
            conversation.close()
        if thread is not None:
            thread.join()

    def _run(self, request: TrialRequest, conversation: TrialChannel, earlier: threading.Thread | None) -> None:
        if earlier is not None:
            earlier.join()
        error, has_lost_gpu = None, False
        try:
            with self._slots:
                if not conversation.is_broken_off:
                    self._run_trial(request, conversation)
        except Exception as problem:
            error, has_lost_gpu = traceback.format_exc(), gpu_is_unusable(problem)
        conversation.finish(error)
        if error is not None and (has_lost_gpu or self._runner.is_unusable):
            # Every later trial in this process would fail as well. Ray starts a new one.
            os._exit(1)

    def _run_trial(self, request: TrialRequest, conversation: TrialChannel) -> None:
        from trials.training.training_run import Decision

        def on_eval(point: EvalPoint) -> Decision:
            conversation.warn(TROUBLES.pop_unreported())
            return Decision.CONTINUE if conversation.report(point) else Decision.STOP

        self._runner.run(request, on_eval, lambda: conversation.is_broken_off, conversation.log)
