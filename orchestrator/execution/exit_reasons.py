"""Classifies the error that ended a Tune trial. Does not import Ray, and knows its errors by name."""

from __future__ import annotations

import re

from orchestrator.controller.failure_policy import ExitKind, TrialExit
from orchestrator.storage.visibility import UNSEEN

_GONE = frozenset({"RayActorError", "WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "OutOfMemoryError"})
"""Ray's errors for a process that is gone: the trial's own, or its proxy."""
_IN_WORKER = "TrialFailedRemotely"
_NOT_HEARD = re.compile(r"^(?:[\w.]+\.)?ReportingError: (.*)$", re.MULTILINE)


def how_it_left(error: BaseException | None, said: str) -> TrialExit:
    """Return how a trial left, by the error that ended its Tune trial.

    `error` is the exception that Tune kept, `said` its text. An error in the worker outside of the training, such as a
    base model that cannot be loaded, may be the trial's own fault or not. It counts as the death of the process, with a
    message.
    """
    cause = getattr(error, "cause", None) or error
    names = {kind.__name__ for found in (error, cause) for kind in type(found).__mro__}
    if names & _GONE:
        return TrialExit(ExitKind.DEATH)
    text = str(cause) if _IN_WORKER in names else said
    not_heard = _NOT_HEARD.search(text)
    if not_heard is not None:
        return TrialExit(ExitKind.PROXY_ERROR, not_heard[1])
    sentence = _error_line(text)
    return TrialExit(ExitKind.DEATH if _IN_WORKER in names and UNSEEN not in text else ExitKind.PROXY_ERROR, sentence)


def _error_line(text: str) -> str:
    """Return the line of a traceback that names the error: the one after its last frame, at most 500 characters."""
    lines = [line for line in text.strip().splitlines() if line.strip()] or ["an error without a text"]
    frames = [number for number, line in enumerate(lines[:-1]) if line.startswith("  ")]
    line = lines[frames[-1] + 1] if frames else lines[-1]
    return line.strip().rstrip(".")[:500]
