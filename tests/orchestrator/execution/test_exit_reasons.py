"""Whose doing an error was that has ended a trial of Tune's."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from orchestrator.controller.failure_policy import DIED, ExitKind, TrialExit
from orchestrator.execution.exit_reasons import how_it_left
from orchestrator.execution.trial_proxy import TrialFailedRemotely
from orchestrator.storage.visibility import UNSEEN

IN_WORKER = """Traceback (most recent call last):
  File "worker.py", line 1, in run
    raise {kind}("text")
{kind}: text
  with a second line
"""


def task_error(cause: Exception) -> RayTaskError:
    """As Tune keeps what a trial's process has raised."""
    said = f"Traceback (most recent call last):\n  File 'x.py', line 1, in f\n{type(cause).__name__}: {cause}"
    return RayTaskError("f", said, cause)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (ActorDiedError(), DIED),
        (task_error(ActorDiedError()), DIED),
        (task_error(OSError("no threads left")), TrialExit(ExitKind.PROXY_ERROR, "OSError: no threads left")),
        (
            task_error(GetTimeoutError("it takes long")),
            TrialExit(ExitKind.PROXY_ERROR, "GetTimeoutError: it takes long"),
        ),
        (
            task_error(TrialFailedRemotely(IN_WORKER.format(kind="torch.cuda.CudaError"))),
            TrialExit(ExitKind.DEATH, "torch.cuda.CudaError: text"),
        ),
        (
            task_error(TrialFailedRemotely(IN_WORKER.format(kind="trials.training.outcome.ReportingError"))),
            TrialExit(ExitKind.PROXY_ERROR, "text"),
        ),
    ],
)
def test_whose_doing_it_was(error: Exception, left: TrialExit) -> None:
    assert how_it_left(error, str(error)) == left


def test_a_node_that_does_not_see_the_run_folder_is_no_trial_s_doing() -> None:
    error = task_error(TrialFailedRemotely(f"Traceback:\n  File\nRunFolderError: node {UNSEEN} it"))
    assert how_it_left(error, str(error)).how is ExitKind.PROXY_ERROR


def test_what_tune_kept_no_error_of_has_its_text() -> None:
    assert how_it_left(None, "Traceback:\n  File\nKeyError: 'x'\n") == TrialExit(ExitKind.PROXY_ERROR, "KeyError: 'x'")
