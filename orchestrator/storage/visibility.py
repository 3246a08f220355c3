"""What a node does to show that it sees the run folder: it leaves a marker there, and reads another's. Knows no Ray.

.marker-<token>-driver     written by the process that asks, read by every node
.marker-<token>-<node id>  written by a node, read by the process that asks

A folder on a node's own disk under the same path is written to without any error, so only markers tell.
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
"""Network file systems may show a new file with some delay."""


class ProbedFolder:
    """A run folder that is a folder."""

    alone = "has a folder of its own under that path, which the other machines don't see"

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, name: str, text: str) -> None:
        """Makes no folder: one that isn't there would be made on the machine's own disk. Raises `OSError`."""
        (self._path / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        """Raises `OSError`."""
        return (self._path / name).read_text(encoding="utf-8")

    def remove(self, names: list[str]) -> None:
        """Those that are there."""
        for name in names:
            (self._path / name).unlink(missing_ok=True)


class ProbedStore:
    """A run folder on an object store. Raises `RunFolderError` if this machine can't reach it at all."""

    alone = "reaches another store under that address, or doesn't see there what others write"

    def __init__(self, url: str) -> None:
        self._store = ObjectStore(url, QUICK)

    def write(self, name: str, text: str) -> None:
        """Raises `StoreFailed`."""
        self._store.write(name, text.encode())

    def read(self, name: str) -> str:
        """Raises `StoreFailed` and `FileNotFoundError`."""
        return self._store.read(name).decode()

    def remove(self, names: list[str]) -> None:
        """Those that are there."""
        self._store.remove(names)


def probed(place: str) -> ProbedFolder | ProbedStore:
    """A run folder by its path or its address."""
    return ProbedStore(place) if is_url(place) else ProbedFolder(Path(place))


def probe_name(token: str, name: str) -> str:
    """What the marker of a node, or of the driver, is called."""
    return f".marker-{token}-{name}"


def write_probe(place: str, token: str, name: str) -> str | None:
    """Writes this machine's marker, and reads the driver's. Returns what went wrong, as seen here; None: nothing."""
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
    """Where it's on this machine's own disk."""
    probed(place).remove([probe_name(token, name)])


def is_visible(place: str, token: str, name: str) -> bool:
    """Whether a marker with that content is there, or comes to be within seconds."""
    run = probed(place)

    def has_it() -> bool:
        try:
            return run.read(probe_name(token, name)) == token
        except (OSError, StoreFailed):
            return False

    return _comes_true(has_it)


def require_visible(trial: Path) -> None:
    """On a machine that is to run a trial: raises `RunFolderError` if the trial's folder isn't there.

    The controller has made it. A machine that joined the cluster after the search began may not share it.
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
