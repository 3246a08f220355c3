"""Outcome of a trial in either backend: errors become endings on disk, and the base model its evaluation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trials.errors import EXIT_INTERRUPTED, DiskFull, TuningError, first_line
from trials.evaluation.answer_scorer import AnswerScorer
from trials.records.trial_dir import Ending, EvalPoint, TrialDir
from trials.state import TrialState
from trials.system.disk_full import disk_full_in
from trials.system.distributed import ProcessGroup
from trials.system.oom import is_out_of_memory
from trials.training.evaluation_loop import TrainableModel
from trials.training.training_run import TrainingRun


class TrialInterrupted(TuningError):
    """A trial was cut off through no fault of its own: it has no ending, and can be resumed."""

    exit_code = EXIT_INTERRUPTED


class ReportingError(TrialInterrupted):
    """A trial was cut off because its reports weren't accepted, by Ray or by the store of its folder."""


def run_and_record(run: TrainingRun, train: Callable[[], Ending | None]) -> Ending | None:
    """Train, and record how that ended; None: the callback stopped the trial, and its side writes the ending.

    Running out of memory is an ending, which is returned. All other errors are raised. `TrialInterrupted` and
    `DiskFull` cut the trial off, and leave no ending; any other error is recorded as `failed`. If another of the
    trial's processes has ended, that cuts it off too: raises `TrialInterrupted`.
    """
    try:
        with disk_full_in(run.folder.path), _cut_off_with_others(run.ranks):
            ending = train()
    except Exception as error:
        if not is_out_of_memory(error):
            _record_failure(run.folder, error)
            raise
        ending = Ending(TrialState.OUT_OF_MEMORY, str(error).split("\n")[0])
    if ending is not None:
        with disk_full_in(run.folder.path):
            run.folder.end(ending)
    return ending


def evaluate_base_model(run: TrainingRun, make_model: Callable[[], TrainableModel]) -> Ending:
    """Evaluate the base model without an adapter, the baseline of all trials. Errors are recorded and raised."""
    folder = run.folder
    try:
        with disk_full_in(folder.path), _cut_off_with_others(run.ranks):
            trained_model = make_model()
            losses = trained_model.losses()
            point = EvalPoint(0, 0, losses.mean, losses.mean, run.timer.seconds)
            folder.keep_if_best(point, losses, save_adapter=None)
            scorer = AnswerScorer(run.config, run.data.eval, run.tokenizer, folder, run.timer, run.ranks)
            if scorer.is_due(0, 0, is_last=True):
                point = trained_model.scored(scorer, point, losses)
            folder.log(point)
    except Exception as error:
        _record_failure(folder, error)
        raise
    run.ask(point)
    ending = Ending(TrialState.FINISHED, "the base model is evaluated, not trained")
    folder.end(ending)
    return ending


@contextmanager
def _cut_off_with_others(ranks: ProcessGroup) -> Iterator[None]:
    """Raise `TrialInterrupted` in place of the error that a collective raises when another rank has ended."""
    try:
        yield
    except Exception as error:
        if ranks.lost_one(error):
            raise TrialInterrupted(f"another of the trial's processes has ended: {first_line(error)}") from error
        raise


def _record_failure(folder: TrialDir, error: Exception) -> None:
    if not isinstance(error, TrialInterrupted | DiskFull) and not _process_is_exiting():
        folder.end(Ending(TrialState.FAILED, f"{type(error).__name__}: {error}"))


def _process_is_exiting() -> bool:
    """Return whether the interpreter is shutting down while a trial runs in another thread, as under Ray.

    Files are closed under the trial then. An error from that is no failure of the trial: it was cut off.
    """
    return not threading.main_thread().is_alive()
