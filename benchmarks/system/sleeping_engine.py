"""Engine whose trials sleep instead of training, along made-up curves; their messages and files are as in others."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.simulator.synthetic_curves import ModelledCurves
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.channel import TrialChannel
from orchestrator.execution.trial_runner import log_evaluation, logged_segment
from orchestrator.execution.trial_worker import TrialWorker
from trials.config import TrialConfig
from trials.metrics.row_losses import RowLosses
from trials.records.checkpoints import CheckpointWriter, LogState, choose_checkpoint
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialDir
from trials.state import TrialState
from trials.system.files import append_json_line
from trials.system.timer import TrialTimer

SEGMENTS = "segments"
"""Folder in the run folder: a file per engine, a line for every segment of a trial in it."""
_STEPS, _TOKENS_PER_SECOND = 100, 1000.0


class SleepingEngine(TrialWorker):
    """Replaces `TrialWorker`, in a process of its own; a trial's `train_tokens` are slept at 1,000 a second."""

    def _run_trial(self, request: TrialRequest, channel: TrialChannel) -> None:
        began = time.time()
        with logged_segment(request.folder, resumes=request.resumes):
            slept = _run(request, channel)
        segments = request.folder.parent.parent / SEGMENTS
        segments.mkdir(exist_ok=True)
        line = {"trial": request.trial_id, "began": began, "ended": time.time(), "slept": slept}
        append_json_line(segments / f"{request.worker}.jsonl", line)


def _run(request: TrialRequest, channel: TrialChannel) -> float:
    """Run one request; return the seconds slept."""
    folder = TrialDir(request.folder)
    if request.origin is Origin.BASE:
        return _evaluate_base(folder, channel)
    return _sleep_through(request.config, folder, channel, resumes=request.resumes)


def _evaluate_base(folder: TrialDir, channel: TrialChannel) -> float:
    loss = ModelledCurves.base_loss
    folder.record(EvalPoint(0, 0, loss, loss, seconds=0.0), _rows(loss), None)
    channel.report(EvalPoint(0, 0, loss, loss, seconds=0.0))
    folder.end(Ending(TrialState.FINISHED, "the base model is evaluated, not trained"))
    return 0.0


def _sleep_through(config: TrialConfig, folder: TrialDir, channel: TrialChannel, *, resumes: bool) -> float:
    curve = ModelledCurves(0).curve(folder.path.name, config.hyperparameters)
    tokens, evaluations = config.hyperparameters.train_tokens or 0, config.evaluation.evaluations
    first = choose_checkpoint(folder.path, None).progress.step * evaluations // _STEPS if resumes else 0
    best = min((loss for at, loss in curve.points if at <= first / evaluations), default=curve.loss(0.0))
    each = tokens / evaluations / _TOKENS_PER_SECOND
    for number in range(first + 1, evaluations + 1):
        time.sleep(each)
        loss = curve.loss(number / evaluations)
        best = min(best, loss)
        seen, step = round(tokens * number / evaluations), _STEPS * number // evaluations
        point = EvalPoint(step, seen, loss, best, number * each, tokens_per_second=_TOKENS_PER_SECOND)
        folder.record(point, _rows(loss), _save_adapter)
        log_evaluation(folder.path.name, point)
        if number < evaluations:
            _checkpoint(folder, point)
        if not channel.report(point):
            return (number - first) * each
    folder.end(Ending(TrialState.FINISHED, "slept through all its steps"))
    return (evaluations - first) * each


def _checkpoint(folder: TrialDir, point: EvalPoint) -> None:
    writer = CheckpointWriter(folder, TrialTimer(point.seconds, point.seconds), ModelledCurves.base_loss, keep=1)

    def save() -> None:
        made = writer.unfinished / f"checkpoint-{point.step}"
        made.mkdir(parents=True)
        _save_adapter(made)

    writer.write(point.step, LogState(point.step, 0.0), save)


def _rows(loss: float) -> RowLosses:
    return RowLosses([10 * loss, 10 * loss], [10, 10])


def _save_adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text("{}", encoding="utf-8")
    (path / "adapter_model.safetensors").write_bytes(b"weights")
