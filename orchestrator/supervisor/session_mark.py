"""Records in a run folder which session runs in it: its processes, and its Ray's temporary folder.

RUN/session.json   exists while a session runs, and after session and supervisor were both killed

A run folder may be copied, or moved to another machine, with this file in it. So processes and folders are ended or
removed only if they are certainly that session's.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.ray_setup import folder as ray_folder
from orchestrator.state.run_dir import RunDir
from trials.system.damage import DamagedFile, read_as
from trials.system.files import write_json
from trials.system.processes import SessionMark, end_session

_NAME = "session.json"


@dataclass(frozen=True, kw_only=True)
class _SessionFile(SessionMark):
    """Content of session.json."""

    ray_folder: str
    run: int
    """Inode of the run folder, by which a copy of it is told from the original."""


_FILES = TypeAdapter(_SessionFile)


def mark_session(run: RunDir) -> Path:
    """Write session.json for the process session that this process leads.

    Return the temporary folder for its Ray, which is made after its name is on disk. Raises `SearchBroken` if it cannot
    be made.
    """
    folder = ray_folder.planned()
    mark = asdict(SessionMark.of(os.getsid(0), folder.name))
    write_json(run.path / _NAME, asdict(_SessionFile(**mark, ray_folder=str(folder), run=run.path.stat().st_ino)))
    return ray_folder.make(folder)


def end_last_session(run: RunDir) -> None:
    """End what is left of an earlier session, whose supervisor was killed before it could clear up."""
    mark = _read(run)
    if mark is not None and mark.is_here and mark.session != os.getsid(0):
        end_session(mark.session)
    clear_session(run, broke=True)


def clear_session(run: RunDir, *, broke: bool) -> None:
    """Remove a session's temporary files, after its processes have ended.

    If it broke, the ends of Ray's own logs are kept in `RunDir.logs`.
    """
    mark = _read(run)
    if mark is not None and mark.host == SessionMark.of(mark.session).host and mark.user == os.geteuid():
        folder = Path(mark.ray_folder)
        if folder.name == mark.token:
            if broke:
                ray_folder.keep_logs(folder, run.logs)
            ray_folder.remove(folder)
    with suppress(OSError):  # it does not exist, or the folder is read-only by now
        (run.path / _NAME).unlink()


def _read(run: RunDir) -> _SessionFile | None:
    """Return the content of session.json.

    None if there is no file, it is damaged or of an earlier version, or this is a copy of its run folder.
    """
    try:
        found = read_as(run.path / _NAME, _FILES)
    except DamagedFile:
        return None
    return found if found is not None and found.ray_folder and found.run == run.path.stat().st_ino else None
