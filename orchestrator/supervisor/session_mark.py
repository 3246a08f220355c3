"""What a run folder says of the session at work in it: whose processes they are, and where Ray's temporary folder is.

RUN/session.json   there while a session runs, and after it was killed together with the command that clears up

A run folder may be copied, or put on another machine, with this file in it: nothing is ended or removed unless it's
sure to be that session's.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.ray_setup import folder as ray_folder
from orchestrator.state.run_dir import RunDir
from trials.system.files import write_json
from trials.system.processes import SessionMark, end_session

_NAME = "session.json"


def mark_session(run: RunDir) -> Path:
    """Says in the run folder whose processes are at work in it: those of the session that this process has opened.

    Returns the temporary folder of its Ray, which is made once its name is written down. Raises `SearchBroken`.
    """
    folder = ray_folder.planned()
    mark = SessionMark.of(os.getsid(0), folder.name)
    write_json(run.path / _NAME, {**asdict(mark), "ray_folder": str(folder), "run": run.path.stat().st_ino})
    return ray_folder.make(folder)


def end_last_session(run: RunDir) -> None:
    """Ends whatever is left of a session that nobody could clear up after, as the command was killed itself."""
    content = _read(run)
    mark = _mark(content)
    if mark is not None and mark.is_here and mark.session != os.getsid(0):
        end_session(mark.session)
    clear_session(run, broke=True)


def clear_session(run: RunDir, *, broke: bool) -> None:
    """Removes what a session has left beside its results, once its processes have gone.

    If it broke, the ends of Ray's own logs are kept in `RunDir.logs`.
    """
    content = _read(run)
    mark = _mark(content)
    if mark is not None and mark.host == SessionMark.of(mark.session).host and mark.user == os.geteuid():
        folder = Path(content["ray_folder"])
        if folder.name == mark.token:
            if broke:
                ray_folder.keep_logs(folder, run.logs)
            ray_folder.remove(folder)
    with suppress(OSError):  # it was made read-only meanwhile
        (run.path / _NAME).unlink()


def _read(run: RunDir) -> dict[str, Any]:
    """Empty without a file, if it's damaged or of an earlier version, and in a copy of the run folder it's about."""
    try:
        content: dict[str, Any] = json.loads((run.path / _NAME).read_text(encoding="utf-8"))
        return content if content["run"] == run.path.stat().st_ino and content["ray_folder"] else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _mark(content: dict[str, Any]) -> SessionMark | None:
    values = {name: value for name, value in content.items() if name not in ("ray_folder", "run")}
    try:
        return SessionMark(**values)
    except TypeError:
        return None
