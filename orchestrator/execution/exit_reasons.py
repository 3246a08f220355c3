"""From an error that has ended a trial of Tune's: whose it was. Knows nothing of Ray but its errors' names."""

from __future__ import annotations

import re

from orchestrator.controller.proxy_errors import ExitKind, TrialExit
from orchestrator.storage.visibility import UNSEEN

_GONE = frozenset({"RayActorError", "WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "OutOfMemoryError"})
"""Ray's errors for a process that isn't there any more, the trial's own or the one that speaks for it."""
_IN_ENGINE = "TrialFailedRemotely"
_NOT_HEARD = re.compile(r"^(?:[\w.]+\.)?ReportingError: (.*)$", re.MULTILINE)


def how_it_left(error: BaseException | None, said: str, *, is_held: bool) -> TrialExit:
    """`error` is what Tune kept of it, `said` the same as text; `is_held`: the trial itself is in another process.

    What a trial raises outside of its training, such as an engine that can't load the base model, may be its own doing
    or not; it counts as a process that died under it, but it has a name.
    """
    cause = getattr(error, "cause", None) or error
    names = {kind.__name__ for found in (error, cause) for kind in type(found).__mro__}
    if names & _GONE:
        return TrialExit(ExitKind.DEATH)
    text = str(cause) if _IN_ENGINE in names else said
    not_heard = _NOT_HEARD.search(text)
    if not_heard is not None:
        return TrialExit(ExitKind.PROXY_ERROR, not_heard[1])
    sentence = _error_line(text)
    is_trials_own = _IN_ENGINE in names or not is_held
    return TrialExit(ExitKind.DEATH if is_trials_own and UNSEEN not in text else ExitKind.PROXY_ERROR, sentence)


def _error_line(text: str) -> str:
    """The line of a traceback that names the error: the one after its last frame."""
    lines = [line for line in text.strip().splitlines() if line.strip()] or ["an error without a text"]
    frames = [number for number, line in enumerate(lines[:-1]) if line.startswith("  ")]
    line = lines[frames[-1] + 1] if frames else lines[-1]
    return line.strip().rstrip(".")[:500]
