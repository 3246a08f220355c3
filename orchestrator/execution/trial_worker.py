"""Worker process: it holds the backend, and runs every trial in a thread.

`orchestrator.execution.worker_pool` makes Ray actors of this class; the module itself does not import Ray.
"""

from __future__ import annotations

import os
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.channel import ChannelMessage, Finished, TrialChannel, Worker
from orchestrator.execution.trial_runner import TrialRunner, end_hung_process, gpu_is_unusable
from trials.cli import quiet_libraries
from trials.console.logs import redirect_output
from trials.console.troubles import TROUBLES
from trials.records.trial_dir import EvalPoint

if TYPE_CHECKING:
    from trials.training.training_run import Decision


class TrialWorker(Worker):
    """Runs trials, as many at once as it has slots; under TRL that must be one.

    `cpu_threads` is the number of torch's threads if there is no GPU; None leaves it as it is. `log` is a file for this
    process's output; None: the output is not redirected.
    """

    def __init__(self, slots: int, cpu_threads: int | None, log: Path | None = None) -> None:
        quiet_libraries()
        if log is not None:
            redirect_output(log)
        self._slots = threading.Semaphore(slots)
        self._runner = TrialRunner(cpu_threads)
        self._channels: dict[str, TrialChannel] = {}
        self._threads: dict[str, threading.Thread] = {}

    def ready(self) -> int:
        """Return the process id."""
        return os.getpid()

    def seconds_since_progress(self) -> float | None:
        """Return `TrialRunner.seconds_since_progress`."""
        return self._runner.seconds_since_progress()

    def begin(self, request: TrialRequest) -> None:
        """Start one trial in a thread, which first waits for the thread of an earlier run of the trial."""
        trial_id, channel = request.trial_id, TrialChannel()
        # A daemon: its files are consistent at any moment, and the end of the search must not wait for it.
        thread = threading.Thread(target=self._run, args=(request, channel, self._threads.get(trial_id)), daemon=True)
        before = self._channels.get(trial_id)
        if before is not None:
            before.close()
        self._channels[trial_id], self._threads[trial_id] = channel, thread
        thread.start()

    def next_message(self, trial_id: str) -> ChannelMessage:
        """Wait for the trial's next message."""
        channel = self._channels.get(trial_id)
        return Finished() if channel is None else channel.next_message()

    def resume(self, trial_id: str) -> None:
        """Let a trial go on after an evaluation."""
        channel = self._channels.get(trial_id)
        if channel is not None:
            channel.reply(goes_on=True)

    def release(self, trial_id: str) -> None:
        """Stop a trial, and wait until its thread has ended."""
        channel, thread = self._channels.pop(trial_id, None), self._threads.get(trial_id)
        if channel is not None:
            channel.close()
        if thread is not None:
            thread.join()

    def leave(self) -> None:
        """End this process; see `end_hung_process`."""
        end_hung_process()

    def _run(self, request: TrialRequest, channel: TrialChannel, earlier: threading.Thread | None) -> None:
        if earlier is not None:
            earlier.join()
        error, has_lost_gpu = None, False
        try:
            with self._slots:
                if not channel.is_closed:
                    self._run_trial(request, channel)
        except Exception as problem:
            error, has_lost_gpu = traceback.format_exc(), gpu_is_unusable(problem)
        channel.finish(error)
        if error is not None and (has_lost_gpu or self._runner.is_unusable):
            # Every later trial in this process would fail as well. Ray starts a new one.
            os._exit(1)

    def _run_trial(self, request: TrialRequest, channel: TrialChannel) -> None:
        from trials.training.training_run import Decision

        def on_eval(point: EvalPoint) -> Decision:
            channel.warn(TROUBLES.pop_unreported())
            return Decision.CONTINUE if channel.report(point) else Decision.STOP

        self._runner.run(request, on_eval, lambda: channel.is_closed, channel.log)
