"""Target folder of an export: a new or empty one, or an earlier export. Nothing else is replaced.

.<name>.export-<random>/          staging folder beside the target, removed when the export is done
    process                       a file, locked as long as the export's process lives
    export/  unproved/            the verified and the unverified export, to be renamed to the target
    replaced/                     the earlier export, for the moment between two renames
"""

from __future__ import annotations

import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from trials.errors import RunFolderError
from trials.records.export_manifest import MANIFEST, read_manifest
from trials.system.disk_full import is_disk_full
from trials.system.files import make_folder, move, sync_directory, sync_folder
from trials.system.locks import takes_lock

_PROCESS = "process"
_SAYS = "an export that python -m orchestrator.export is making"
_ADVICE = "Give a new or empty folder, or an earlier export."
_MOST_SET_ASIDE = 1000


def refuse_target(target: Path, run: Path) -> None:
    """Raise `RunFolderError` if an export to `target` would replace or hide anything but an earlier export."""
    if target.is_symlink():
        raise RunFolderError(f"{target} is a link to {target.readlink()}. Give the folder itself as --to.")
    here, run = target.resolve(), run.resolve()
    if here == run or here in run.parents:
        raise RunFolderError(f"{target} holds the run folder {run}. {_ADVICE}")
    if run in here.parents and (here.parent != run or not here.name.startswith("export")):
        raise RunFolderError(
            f"{target} is a part of the run folder {run}, where an export is called `export` or, for example, "
            "`export-merged`. Give such a name, or a folder elsewhere."
        )
    if os.path.ismount(target):
        raise RunFolderError(f"{target} is where a disk is mounted, so it can't be renamed. Give a folder in it.")
    if target.exists() and not target.is_dir():
        raise RunFolderError(f"{target} is a file. {_ADVICE}")
    try:
        problem = _not_ours(target) if target.is_dir() else None
    except OSError as error:
        problem = f"can't be read: {error.strerror}"
    if problem is not None:
        raise RunFolderError(f"{target} {problem}. It's left as it is. {_ADVICE}")


def set_strangers_aside(target: Path) -> Path | None:
    """Rename what is in the way of a run folder's own export, and return its new path; None: nothing is in the way.

    It is renamed because a search can't ask its user.
    """
    if not target.is_symlink() and (not target.exists() or (target.is_dir() and _not_ours(target) is None)):
        return None
    names = (target.with_name(f"{target.name}.kept-{number}") for number in range(1, _MOST_SET_ASIDE))
    kept = next(name for name in names if not name.exists() and not name.is_symlink())
    move(target, kept)
    return kept


def _not_ours(folder: Path) -> str | None:
    """Say in words what a folder holds that no export of this project has written; None: nothing."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    if not names and not any(folder.iterdir()):
        return None
    manifest = read_manifest(folder)
    if manifest is None:
        return "is not empty, and no export of this project"
    others = sorted(set(names) - {MANIFEST, *manifest["files"]})
    return f"holds {others[0]}, which isn't of the export that is there" if others else None


class Staging:
    """Folder beside the target in which an export is made; `staging_beside` creates it."""

    def __init__(self, path: Path, target: Path, run: Path, *, may_set_aside: bool) -> None:
        self.path = path
        self.target = target
        self._run = run
        self._may_set_aside = may_set_aside
        self._is_put = False

    def empty(self, name: str) -> Path:
        """Return a new and empty folder of that name in the staging folder."""
        folder = self.path / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def put_in_place(self, made: Path) -> None:
        """Rename a finished folder of the staging folder to the target, in the place of an earlier export.

        Raises `RunFolderError` if something else has appeared there meanwhile that may not be set aside.
        """
        if self._may_set_aside:
            set_strangers_aside(self.target)
        refuse_target(self.target, self._run)
        sync_folder(made)
        if self.target.exists():
            move(self.target, self.path / "replaced")
        move(made, self.target)
        self._is_put = True
        shutil.rmtree(self.path / "replaced", ignore_errors=True)

    def take_away(self) -> None:
        """Remove the export that was put in place, if one was."""
        if self._is_put and read_manifest(self.target) is not None:
            self._is_put = False
            move(self.target, self.path / "replaced")
            shutil.rmtree(self.path / "replaced", ignore_errors=True)


@contextmanager
def staging_beside(target: Path, run: Path, *, may_set_aside: bool) -> Iterator[Staging]:
    """Yield a folder beside the target that no other process uses; remove it at the end. Raises `RunFolderError`.

    With `may_set_aside`, what is in the way of the target later on is renamed instead of raising an error.
    """
    try:
        make_folder(target.parent)
        recover_export(target)
        path = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    except OSError as error:
        if may_set_aside and is_disk_full(error):
            raise
        raise RunFolderError(
            f"can't write to {target.parent}: {error.strerror}. Give another folder by --to."
        ) from error
    try:
        with (path / _PROCESS).open("a+", encoding="utf-8") as file:
            _lock(file)
            file.write(f"{_SAYS}: process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            sync_folder(path)
            sync_directory(path.parent)
            yield Staging(path, target, run, may_set_aside=may_set_aside)
    finally:
        _remove(path, target)


def recover_export(target: Path) -> None:
    """Put back an earlier export whose replacement was interrupted by a kill, and remove what the process left."""
    for path in sorted(target.parent.glob(f"{glob.escape(_prefix(target))}*")):
        if _is_left_over(path):
            _remove(path, target)


def _remove(path: Path, target: Path) -> None:
    replaced = path / "replaced"
    if not target.exists() and not target.is_symlink() and read_manifest(replaced) is not None:
        move(replaced, target)
    # The file `process` is removed last, as it proves that the folder is this project's.
    for name in ("export", "unproved", "replaced"):
        shutil.rmtree(path / name, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)


def _is_left_over(path: Path) -> bool:
    """Return whether a folder provably belongs to an export of this project and user whose process is gone."""
    try:
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            return False
        with (path / _PROCESS).open("r+", encoding="utf-8") as file:
            return file.read().startswith(_SAYS) and takes_lock(file)
    except (OSError, ValueError):
        return False


def _lock(file: TextIO) -> None:
    """Lock the file, if the file system has locks.

    Where it has none, the user has to remove what a killed export leaves.
    """
    with suppress(OSError):
        takes_lock(file)


def _prefix(target: Path) -> str:
    return f".{target.name[:60]}.export-"
