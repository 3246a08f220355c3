"""Object store that holds run folders, s3:// or gs://: few operations, each retried before it counts as failed.

fsspec reaches the store, with the credentials and endpoint that the store's own tools use on this machine. An object is
there whole or not at all. Nothing is renamed, and no two objects change together.

fsspec's operations on lists are not used: their errors name no object, a retry would repeat all of them, and for `file`
a removal of several fails at one that is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from orchestrator.storage.names import checked_name
from trials.errors import RunFolderError, StoreDamaged, StoreFailed, first_line
from trials.records.adapter_check import sha256_of

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "file": "fsspec"}
"""Package that fsspec needs for each scheme; `file` is a folder on this machine, used as if it were a store."""
_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each retry of an operation; with the libraries' own retries, it survives an outage of a minute."""
QUICK = (0.5,)
"""Seconds before the retry at the start of a command: a wrong name needn't be tried for a minute."""
_AT_ONCE = 8

T = TypeVar("T")


class ObjectStore:
    """Objects by their names below one address, such as s3://bucket/runs/1; names have slashes.

    Every method raises `StoreFailed` if the store keeps failing, and `FileNotFoundError` if an object doesn't exist.
    Methods may be called from any thread.
    """

    def __init__(self, url: str, waits: Iterable[float] = _WAITS) -> None:
        self.url = url.rstrip("/")
        self._waits = tuple(waits)
        self._files, self._root = _file_system(self.url)

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return self._tried(f"read {name}", lambda: bytes(self._files.cat_file(self._path(name))))

    def write(self, name: str, content: bytes) -> None:
        """Write an object, in place of an existing one."""
        self._tried(f"write {name}", lambda: self._write(name, content, "overwrite"))

    def create(self, name: str, content: bytes) -> bool:
        """Create an object; return False if one exists already, which is left as it is.

        Of two processes at the same time, one creates it.
        """
        try:
            self._tried(f"create {name}", lambda: self._write(name, content, "create"))
        except FileExistsError:
            # The store's answer to the first try may have been lost, though that try created the object.
            return self.read(name) == content
        return True

    def upload(self, files: Mapping[str, Path]) -> None:
        """Copy files to the store, several at once."""
        self._each(lambda item: self._tried(f"write {item[0]}", lambda: self._put(*item)), files.items())

    def download(self, files: Mapping[str, Path], hashes: Mapping[str, str] | None = None) -> None:
        """Copy objects into files, several at once; a file is there whole or not at all.

        `hashes` are the SHA-256 that objects must have, by name. Raises `StoreDamaged` if one has another.
        """
        known = hashes or {}
        self._each(
            lambda item: self._tried(f"read {item[0]}", lambda: self._get(item[0], item[1], known.get(item[0]))),
            files.items(),
        )

    def names(self, below: str = "") -> list[str]:
        """Return the names of all objects in the folder `below`, sorted; of all objects if it is empty.

        Raises `StoreDamaged` if a name leads elsewhere.
        """
        found = self._tried("list", lambda: self._find(below))
        names = (path.removeprefix(f"{self._root}/") for path in found)
        return sorted(checked_name(name, f"the listing of {self.url}") for name in names if not name.endswith("/"))

    def modified(self, name: str) -> datetime:
        """Return the time at which an object was written, by the store's own clock."""
        return self._tried(f"read {name}", lambda: self._modified(name))

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; a missing one is no error."""
        self._each(lambda name: self._tried(f"remove {name}", lambda: self._remove(name)), names)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _write(self, name: str, content: bytes, mode: str) -> None:
        self._make_parent(name)
        if mode == "create" and "file" in self._files.protocol:
            # fsspec checks first and writes then, so that several processes could create the same file.
            with Path(self._path(name)).open("xb") as file:
                file.write(content)
            return
        self._files.pipe_file(self._path(name), content, mode=mode)

    def _put(self, name: str, path: Path) -> None:
        self._make_parent(name)
        self._files.put_file(str(path), self._path(name))

    def _get(self, name: str, path: Path, sha256: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        self._files.get_file(self._path(name), str(beside))
        if sha256 is not None:
            self._refuse_other(beside, name, sha256)
        beside.replace(path)

    def _refuse_other(self, path: Path, name: str, sha256: str) -> None:
        found = sha256_of(path)
        if found != sha256:
            path.unlink()
            raise StoreDamaged(
                f"{self.url}/{name} isn't what was put there: its SHA-256 is {found}, and should be {sha256}. "
                "It's not used. Remove the trial that it belongs to."
            )

    def _find(self, below: str) -> list[str]:
        self._files.invalidate_cache()
        return list(self._files.find(self._path(below).rstrip("/")))

    def _modified(self, name: str) -> datetime:
        self._files.invalidate_cache()
        found: datetime = self._files.modified(self._path(name))
        return found

    def _remove(self, name: str) -> None:
        try:
            self._files.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def _make_parent(self, name: str) -> None:
        if self.url.startswith("file:"):
            Path(self._path(name)).parent.mkdir(parents=True, exist_ok=True)

    def _each(self, act: Callable[[Any], None], items: Iterable[Any]) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(act, items))

    def _tried(self, what: str, act: Callable[[], T]) -> T:
        for wait in (*self._waits, None):
            try:
                return act()
            except (FileNotFoundError, FileExistsError, StoreDamaged):
                raise
            except Exception as error:  # each library raises its own types
                if wait is None or isinstance(error, PermissionError | ValueError):
                    raise StoreFailed(
                        f"can't {what} on {self.url}: {type(error).__name__}: {first_line(error)}. What is there is "
                        "whole; go on by --resume once the store answers and takes this machine's credentials."
                    ) from error
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")


def is_url(text: str) -> bool:
    """Return whether a run folder is named by an address, and not by a path."""
    return "://" in text


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system, without its cache of listings, and the root's path. Raises `RunFolderError`."""
    import fsspec

    address = urlsplit(url)
    package = PACKAGES.get(address.scheme)
    if package is None or not (address.netloc or address.scheme == "file") or not address.path.strip("/"):
        raise RunFolderError(
            f"{url!r} is no place for a run folder. Give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or a folder's path."
        )
    try:
        files = fsspec.filesystem(address.scheme, use_listings_cache=False)
    except ImportError as error:
        raise RunFolderError(
            f"{address.scheme}:// needs the package {package}, which isn't installed here. Install it on every node: "
            f"pip install {package}"
        ) from error
    except Exception as error:  # a library that looks for credentials at once
        raise RunFolderError(f"can't use {url}: {first_line(error)}. Check this machine's credentials.") from error
    return files, str(files._strip_protocol(url)).rstrip("/")
