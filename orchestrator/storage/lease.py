"""Lease on a run folder on an object store: one command at a time, whichever machines they are on.

<run>/lock/<number>.json  the owner, written again every 20 seconds; the lowest number that is renewed counts

A store has no locks. But of two processes that create the same object, one is told that it exists already. Whether a
lease is still renewed is judged by the store's clock, not by that of any machine.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.storage.object_store import ObjectStore
from trials.console.terminal import drain_console
from trials.errors import EXIT_INTERRUPTED, RunFolderError, StoreFailed
from trials.system.processes import SessionMark

_FOLDER = "lock"
_RENEWED_SECONDS = 20.0
_DEAD_SECONDS = 120.0


@dataclass(frozen=True)
class LeaseOwner:
    """Process that has a run folder; `place` is its working copy, which the operating system can lock."""

    who: str
    place: str

    @classmethod
    def of_this(cls, copy: Path) -> LeaseOwner:
        """Return this process as an owner; it must have the lock of its working copy."""
        mark = SessionMark.of(0)
        return cls(f"process {os.getpid()} on {socket.gethostname()}", f"{mark.host} {mark.boot} {copy}")


@contextmanager
def run_lease(store: ObjectStore, copy: Path) -> Iterator[None]:
    """Keep commands on other machines out of the run folder; this one must have the lock of its working copy.

    The lease of a killed owner lasts two more minutes, unless it was in the same working copy. Raises `RunFolderError`
    while another command has the lease. If this process can't reach the store for so long that another command takes
    the lease over, this process ends.
    """
    owner = LeaseOwner.of_this(copy)
    name = _take(store, owner)
    is_over, content = threading.Event(), _content(owner)
    threading.Thread(target=_renew, args=(store, name, content, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        with suppress(StoreFailed):  # then the lease expires
            store.remove([name])


def _take(store: ObjectStore, owner: LeaseOwner) -> str:
    """Acquire a lease for this process and return its name. Raises `RunFolderError` if another command has one."""
    number = max(_numbers(store), default=0) + 1
    name = _name(number)
    if not store.create(name, _content(owner)):
        raise _taken(store, _owner(store, name))
    for other in [other for other in _numbers(store) if other < number]:
        its = _owner(store, _name(other))
        if its is not None and its.place != owner.place and _is_renewed(store, _name(other), name):
            store.remove([name])
            raise _taken(store, its)
        store.remove([_name(other)])
    return name


def _is_renewed(store: ObjectStore, name: str, newest: str) -> bool:
    """Return whether a lease is still renewed; `newest` is one that was written just now."""
    try:
        age = store.modified(newest) - store.modified(name)
    except FileNotFoundError:  # released meanwhile
        return False
    return age.total_seconds() < _DEAD_SECONDS


def _renew(store: ObjectStore, name: str, content: bytes, is_over: threading.Event) -> None:
    while not is_over.wait(_RENEWED_SECONDS):
        try:
            if store.read(name) == content and not is_over.is_set():
                store.write(name, content)
        except FileNotFoundError:
            if is_over.is_set():
                return
            sys.stderr.write(f"error: another command has taken over {store.url}, as this one couldn't reach it\n")
            drain_console()
            # The run folder belongs to the other command by now, so this process must write nothing more to the store.
            os._exit(EXIT_INTERRUPTED)
        except StoreFailed:
            continue  # an operation that needs the store reports it


def _taken(store: ObjectStore, owner: LeaseOwner | None) -> RunFolderError:
    who = "another command" if owner is None else owner.who
    return RunFolderError(
        f"{store.url} is in use by {who}. Wait until that has ended, or end it; one that was killed is forgotten after "
        f"{_DEAD_SECONDS:.0f} s."
    )


def _content(owner: LeaseOwner) -> bytes:
    return json.dumps(asdict(owner)).encode()


def _owner(store: ObjectStore, name: str) -> LeaseOwner | None:
    """Return the owner of a lease; None if the lease was released."""
    try:
        return LeaseOwner(**json.loads(store.read(name)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        # With file://, a lease exists before its content does. It counts as another command's until it is too old.
        return LeaseOwner("another command", "")


def _numbers(store: ObjectStore) -> list[int]:
    stems = (Path(name).stem for name in store.names(f"{_FOLDER}/"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _name(number: int) -> str:
    return f"{_FOLDER}/{number}.json"
