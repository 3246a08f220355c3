"""Run folder: all state of a search on disk, readable without Ray and without torch.

RUN/search.json    resolved recipe, deadline, versions, seeds, hardware
RUN/study.db       Optuna's storage
RUN/trials/<id>/   one folder per trial; 0000 is the base model
RUN/damaged/       trials that were unusable when the search was resumed (orchestrator.state.trial_folders)
RUN/export/        the verified winner
RUN/logs/          search.log, and output of trials' processes
RUN/trials.csv  report.html  samples.json  timing.json
"""

from __future__ import annotations

import shlex
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

from orchestrator.state.search import Search
from orchestrator.state.search_file import read_search_file, write_search_file
from orchestrator.state.trial_folders import BASE_ID, Trials, read_trials
from trials.errors import RunFolderError
from trials.records.trial_dir import TrialRecord
from trials.system.damage import read_value
from trials.system.disk_full import refuse_unmakeable
from trials.system.files import make_folder

BASE_TRIAL_ID = BASE_ID
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories of control characters, of bytes that are not UTF-8, and of line separators."""


def sqlite_url(path: Path) -> str:
    """Return SQLAlchemy's URL of a SQLite file.

    Reserved characters of the path are percent-encoded. Otherwise a `?` would end the file's name, and Optuna would
    take braces for placeholders.
    """
    from sqlalchemy.engine import URL  # inside, as it takes half a second and few callers need it

    return str(URL.create("sqlite", database=str(path)))


class RunDir:
    """Paths and contents of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def study_url(self) -> str:
        """SQLAlchemy URL of the study, for Optuna and optuna-dashboard."""
        return sqlite_url(self.path / "study.db")

    @property
    def export(self) -> Path:
        """Folder of the exported winner."""
        return self.path / "export"

    @property
    def logs(self) -> Path:
        """Folder of search.log and of the output of trials' processes.

        Each worker has a file, and each rank of a worker group.
        """
        return self.path / "logs"

    def trial(self, trial_id: str) -> Path:
        """Return the folder of one trial."""
        return self.path / "trials" / trial_id

    def write_search(self, search: Search) -> None:
        """Write search.json. Repeated whenever placement, length of trials or reserve become known."""
        write_search_file(self.path / "search.json", search)

    def read_search(self) -> Search:
        """Read search.json. Raises `RunFolderError` if it is absent or can't be read."""
        return read_search_file(self.path / "search.json")

    def read_json(self, name: str) -> Any | None:
        """Return the content of a JSON file of the folder; None if it is absent.

        Raises `trials.system.damage.DamagedFile` if it can't be read.
        """
        return read_value(self.path / name)

    def records(self) -> list[TrialRecord]:
        """Return the usable trials on disk, ordered by id."""
        return list(self.read_trials().records)

    def read_trials(self) -> Trials:
        """Return the usable and the damaged trials on disk."""
        return read_trials(self.path / "trials")


def refuse_taken(path: Path) -> None:
    """Raise `RunFolderError` if the folder holds a search or anything else, or can't be made."""
    refuse_unprintable(path)
    refuse_unmakeable(path, "--out")
    if (path / "search.json").exists():
        raise RunFolderError(
            f"{path} holds another search. Go on with it by --resume {shlex.quote(str(path))}, or give another --out "
            "folder."
        )
    if path.is_dir() and any(path.iterdir()):
        raise RunFolderError(f"{path} is not empty. Give a new or empty --out folder.")


def refuse_unprintable(path: Path) -> None:
    """Raise `RunFolderError` if a path has line breaks, other control characters, or bytes that are not UTF-8.

    The path is written to JSON files, to lines of logs and into commands for the user.
    """
    if any(unicodedata.category(character) in _UNPRINTABLE for character in str(path.absolute())):
        raise RunFolderError(
            f"{str(path)!r} has a line break or another character that can't be printed. Give another --out folder."
        )


def create_run_dir(path: Path) -> RunDir:
    """Create an empty run folder. Raises `RunFolderError` if it can't be made or isn't empty."""
    refuse_taken(path)
    try:
        make_folder(path / "trials")
        with tempfile.TemporaryFile(dir=path):  # with a unique name, to test that files can be written
            pass
    except OSError as error:
        raise RunFolderError(f"can't write to {path}: {error.strerror}. Give another --out folder.") from error
    return RunDir(path.absolute())


def open_run_dir(path: Path) -> RunDir:
    """Open an existing run folder. Raises `RunFolderError` if it holds no readable search."""
    folder = RunDir(path.absolute())
    folder.read_search()
    return folder
