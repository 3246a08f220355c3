"""Runs a trial without an engine: one Tune trial at a time, in a process that Ray reuses for the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import tune

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.loading import load_rows
from orchestrator.execution.reporting import REQUEST_KEY, report_of, tracked
from orchestrator.execution.segment_log import log_evaluation, logged_segment
from orchestrator.execution.watchdog import Watchdog, ending_if_hung
from orchestrator.storage.working_copy import WorkingCopy, working_copy_of
from trials.cli import quiet_libraries
from trials.console.logs import redirect_output
from trials.records.checkpoints import choose_checkpoint
from trials.records.trial_dir import EvalPoint, Origin, TrialDir
from trials.tracking.trial_run import Log, figures

if TYPE_CHECKING:
    from trials.training.training_run import Decision


def run_trial_task(config: dict[str, Any]) -> None:
    """Run one trial; `config` is Ray Tune's, and contains the request."""
    request: TrialRequest = config[REQUEST_KEY]
    quiet_libraries()
    assert request.log is not None
    redirect_output(request.log)
    with working_copy_of(request.folder, request.remote) as copy, logged_segment(copy.path, resumes=request.resumes):
        stopped = _run(request, copy)
    if stopped is not None:
        # Ray stops a trial's thread with this exception, which has to reach Ray so that the process is reused.
        raise stopped


def _run(request: TrialRequest, copy: WorkingCopy) -> SystemExit | None:
    """Run a trial until it ends or Tune stops it; return the exception by which Tune did, else None."""
    from trials.system.torch_setup import use_threads
    from trials.training.training_run import TrainingRun
    from trials.trl.backend import TrlBackend

    config = request.config
    folder = TrialDir(copy.path)
    use_threads(config.machine)
    tokenizer, data = load_rows(config.model, config.data, request.fingerprint)
    limit = config.machine.step_limit_seconds
    with tracked(request) as log, ending_if_hung(limit) as watchdog:
        report = _Report(request.trial_id, watchdog, copy, log)
        checkpoint = choose_checkpoint(folder.path, None) if request.resumes else None
        run = TrainingRun(config, data, tokenizer, folder, report, request.stop_at, checkpoint, on_log=log)
        if request.origin is Origin.BASE:
            TrlBackend().evaluate_base(run)
        else:
            TrlBackend().run(run)
    return report.stopped


class _Report:
    """Reports every evaluation to Tune; turns the SystemExit by which Tune stops a thread into `Decision.STOP`."""

    def __init__(self, trial_id: str, watchdog: Watchdog, copy: WorkingCopy, log: Log) -> None:
        self._trial_id = trial_id
        self._watchdog = watchdog
        self._copy = copy
        self._log = log
        self.stopped: SystemExit | None = None

    def __call__(self, point: EvalPoint) -> Decision:
        from trials.training.training_run import Decision

        self._log(figures(point))
        log_evaluation(self._trial_id, point)
        try:
            with self._watchdog.resting():
                self._copy.push()
                self._report(point)
        except SystemExit as stop:
            self.stopped = stop
            self._copy.detach()
            return Decision.STOP
        return Decision.CONTINUE

    def _report(self, point: EvalPoint) -> None:
        try:
            tune.report(report_of(point))
        except Exception as error:
            from trials.training.outcome import ReportingError

            # The failure is not the trial's, which must not be recorded as failed.
            raise ReportingError(f"Ray Tune doesn't take an evaluation: {type(error).__name__}: {error}") from error
