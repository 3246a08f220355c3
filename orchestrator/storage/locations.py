"""Run folders by their location: a path, or an address on an object store."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.state.run_dir import RunDir, create_run_dir, open_run_dir, refuse_taken
from orchestrator.storage.mirror import Mirror, address, working_copy
from orchestrator.storage.object_store import QUICK, ObjectStore, is_url
from orchestrator.storage.run_storage import storage_of
from trials.errors import RunFolderError, StoreFailed
from trials.records.trial_dir import TrialRecord
from trials.system.locks import exclusive_lock


def refuse_taken_place(place: str) -> None:
    """Raise `RunFolderError` if the location holds a search, or anything else."""
    if not is_url(place):
        refuse_taken(Path(place))
        return
    names = _first_look(place)
    if "search.json" in names:
        raise RunFolderError(
            f"{place} holds another search. Go on with it by --resume {shlex.quote(place)}, or give another --out."
        )
    if names:
        raise RunFolderError(f"{place} is not empty: {names[0]} is there. Give a new or empty --out.")


def create_run(place: str) -> RunDir:
    """Create a run folder, at a path or on a store, and return it. Raises `RunFolderError` if that fails."""
    if not is_url(place):
        return create_run_dir(Path(place))
    check_store(ObjectStore(place, QUICK))
    path = working_copy(place)
    if path.exists():  # of a search that isn't on the store any more
        with exclusive_lock(path):
            path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}"))
    folder = create_run_dir(path)
    Mirror(place, folder.path).begin()
    return folder


def open_run(place: str) -> RunDir:
    """Return an existing run folder; for one on a store, a working copy that is up to date.

    Raises `RunFolderError` if there is no search.
    """
    if not is_url(place):
        return open_run_dir(Path(place))
    if "search.json" not in _first_look(place):
        raise RunFolderError(f"{place} holds no search: there is no search.json in it. Give a run folder.")
    mirror = Mirror(place, working_copy(place))
    mirror.begin()
    try:
        with exclusive_lock(mirror.path):
            mirror.pull_files()
            mirror.pull_trials()
    except RunFolderError:
        pass  # a search on this machine has the working copy, and keeps it up to date
    return open_run_dir(mirror.path)


@contextmanager
def exclusive_access(folder: RunDir) -> Iterator[None]:
    """Keep other commands out of a run folder, on all machines. Raises `RunFolderError` if another is in it."""
    with exclusive_lock(folder.path), storage_of(folder.path).lease():
        yield


def fetch_weights(trial: TrialRecord) -> None:
    """Replace placeholders of a trial by the weights on the store, if the run folder is a working copy."""
    storage_of(trial.folder.parent.parent).fetch_weights(trial.folder)


def upload(folder: RunDir, *tops: str) -> None:
    """Upload what a command has made beside the trials, if the run folder is on a store.

    `tops` are the files and folders that it made. None given: all, which only a command with exclusive access may do.
    """
    storage_of(folder.path).upload(*tops)


def address_of(folder: RunDir) -> str:
    """Return the run folder's location as a command line takes it: an address on a store, or a path."""
    return address(folder.path)


def check_store(store: ObjectStore) -> None:
    """Write, read, list and remove an object. Raises `RunFolderError` with advice if one of these fails."""
    name = f"check/{secrets.token_hex(8)}"
    try:
        store.write(name, b"written")
        if store.read(name) != b"written" or name not in store.names("check/"):
            raise RunFolderError(f"{store.url} doesn't give back what was just written. Give another --out.")
        store.remove([name])
    except (StoreFailed, FileNotFoundError) as error:
        raise _unusable(store.url, error) from error


def _first_look(place: str) -> list[str]:
    try:
        return [
            name for name in ObjectStore(place, QUICK).names() if not name.startswith(("check/", "lock/", ".marker-"))
        ]
    except FileNotFoundError:
        return []
    except StoreFailed as error:
        raise _unusable(place, error) from error


def _unusable(url: str, error: Exception) -> RunFolderError:
    said = error.__cause__ or error
    return RunFolderError(
        f"can't use {url}: {type(said).__name__}: {said}. Check the bucket's name and this machine's credentials "
        "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws, and AWS_ENDPOINT_URL of another store than Amazon's; "
        "GOOGLE_APPLICATION_CREDENTIALS)."
    )
