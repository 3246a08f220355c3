"""Records in a run folder which session runs in it: its processes, and its Ray's temporary folder.

RUN/session.json   exists while a session runs, and after session and supervisor were both killed

A run folder may be copied, or moved to another machine, with this file in it. So processes and folders are ended or
removed only if they are certainly that session's.
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
    """Write session.json for the process session that this process leads.

    Return the temporary folder for its Ray, which is made after its name is on disk. Raises `SearchBroken` if it cannot
    be made.
    """
    folder = ray_folder.planned()
    mark = SessionMark.of(os.getsid(0), folder.name)
    write_json(run.path / _NAME, {**asdict(mark), "ray_folder": str(folder), "run": run.path.stat().st_ino})
    return ray_folder.make(folder)


def end_last_session(run: RunDir) -> None:
    """End what is left of an earlier session, whose supervisor was killed before it could clear up."""
    content = _read(run)
    mark = _mark(content)
    if mark is not None and mark.is_here and mark.session != os.getsid(0):
        end_session(mark.session)
    clear_session(run, broke=True)


def clear_session(run: RunDir, *, broke: bool) -> None:
    """Remove a session's temporary files, after its processes have ended.

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
    with suppress(OSError):  # it does not exist, or the folder is read-only by now
        (run.path / _NAME).unlink()


def _read(run: RunDir) -> dict[str, Any]:
    """Return the content of session.json.

    Empty if there is no file, it is damaged or of an earlier version, or this is a copy of its run folder.
    """
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
