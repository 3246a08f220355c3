"""Probe files by which a node shows that it sees the run folder: it writes one there, and reads another. Knows no Ray.

.marker-<token>-driver     written by the process that asks, read by every node
.marker-<token>-<node id>  written by a node, read by the process that asks

A folder on a node's own disk under the same path can be written without any error, so only probe files tell.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.storage.object_store import QUICK, ObjectStore, is_url
from trials.errors import RunFolderError, StoreFailed, first_line

UNSEEN = "doesn't see the trial's folder"
_SEEN_SECONDS = 5.0
"""Seconds to wait for a file, because network file systems may show a new one with some delay."""


class ProbedFolder:
    """A run folder at a path."""

    alone = "has a folder of its own under that path, which the other machines don't see"

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, name: str, text: str) -> None:
        """Write a file. Raises `OSError`.

        A missing run folder is not created, because it would be created on the machine's own disk.
        """
        (self._path / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        """Return a file's text. Raises `OSError`."""
        return (self._path / name).read_text(encoding="utf-8")

    def remove(self, names: list[str]) -> None:
        """Remove files; a missing one is no error."""
        for name in names:
            (self._path / name).unlink(missing_ok=True)


class ProbedStore:
    """A run folder on an object store. Raises `RunFolderError` if this machine can't use such an address."""

    alone = "reaches another store under that address, or doesn't see there what others write"

    def __init__(self, url: str) -> None:
        self._store = ObjectStore(url, QUICK)

    def write(self, name: str, text: str) -> None:
        """Write a file. Raises `StoreFailed`."""
        self._store.write(name, text.encode())

    def read(self, name: str) -> str:
        """Return a file's text. Raises `StoreFailed` and `FileNotFoundError`."""
        return self._store.read(name).decode()

    def remove(self, names: list[str]) -> None:
        """Remove files; a missing one is no error."""
        self._store.remove(names)


def probed(place: str) -> ProbedFolder | ProbedStore:
    """Return a run folder by its path or its address."""
    return ProbedStore(place) if is_url(place) else ProbedFolder(Path(place))


def probe_name(token: str, name: str) -> str:
    """Return the name of the probe file of a node, or of the driver."""
    return f".marker-{token}-{name}"


def write_probe(place: str, token: str, name: str) -> str | None:
    """Write this machine's probe file, and read the driver's. Return what went wrong, in words; None: nothing."""
    try:
        run = probed(place)
        run.write(probe_name(token, name), token)
    except FileNotFoundError:
        return "doesn't have that folder"
    except OSError as error:
        return f"can't write to it: {error.strerror}"
    except (RunFolderError, StoreFailed) as error:
        return f"can't write to it: {first_line(error)}"
    return None if is_visible(place, token, "driver") else run.alone


def remove_probe(place: str, token: str, name: str) -> None:
    """Remove a probe file as this machine sees it, which may be one on its own disk."""
    probed(place).remove([probe_name(token, name)])


def is_visible(place: str, token: str, name: str) -> bool:
    """Return whether the probe file `name` holds `token`, now or within seconds."""
    run = probed(place)

    def has_it() -> bool:
        try:
            return run.read(probe_name(token, name)) == token
        except (OSError, StoreFailed):
            return False

    return _comes_true(has_it)


def require_visible(trial: Path) -> None:
    """Raise `RunFolderError` if this machine, which is to run a trial, doesn't see the trial's folder.

    The controller has made the folder. A machine that joined the cluster after the search began may not share it.
    """
    if not _comes_true((trial / "config.json").is_file):
        raise RunFolderError(
            f"{socket.gethostname()} {UNSEEN}, {trial}. Mount the run folder there as on the other nodes, or take the "
            "node out of the cluster."
        )


def _comes_true(holds: Callable[[], bool]) -> bool:
    ends = time.monotonic() + _SEEN_SECONDS
    while not holds():
        if time.monotonic() > ends:
            return False
        time.sleep(0.1)
    return True
