"""Placeholders for files of weights on an object store: as long as the file, with the hash of its content.

The search's own machine decides by what trials measured, and needs no weights for that. It moves, links and copies a
placeholder as it would the file. A placeholder is a sparse file, so it takes no disk space.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from orchestrator.storage.names import SHA256

_MAGIC = b"qlora-orchestrator: the content is on the object store, sha256 "
_LENGTH = len(_MAGIC) + 2 * hashlib.sha256().digest_size


def fits_placeholder(size_bytes: int) -> bool:
    """Return whether a file of that size has room for a placeholder's text."""
    return size_bytes >= _LENGTH


def write_placeholder(path: Path, sha256: str, size_bytes: int) -> None:
    """Write a placeholder for content of that hash and size."""
    with path.open("wb") as file:
        file.write(_MAGIC + sha256.encode())
        file.truncate(size_bytes)


def content_of(path: Path) -> str | None:
    """Return the hash of the content that a placeholder stands for; None: the file is no placeholder."""
    with path.open("rb") as file:
        start = file.read(_LENGTH)
    sha256 = start[len(_MAGIC) :].decode(errors="replace")
    return sha256 if start.startswith(_MAGIC) and SHA256.fullmatch(sha256) else None
