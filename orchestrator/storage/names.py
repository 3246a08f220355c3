"""Checks of what a store says about files, before any is written: anyone may have put it there."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from pathlib import Path
from typing import Any

from trials.errors import StoreDamaged

SHA256 = re.compile(r"[0-9a-f]{64}")
_NEVER = re.compile(r"[\0-\x1f\x7f\\]")
_LONGEST_NAME = 255


def checked_name(name: object, where: str) -> str:
    """Return a file's name below some folder, with slashes.

    Raises `StoreDamaged` if it could lead out of that folder. `where` names the object and its store, for the message.
    """
    if isinstance(name, str) and not _NEVER.search(name) and all(map(_is_plain, name.split("/"))):
        return name
    raise StoreDamaged(
        f"{where} names a file {str(name)[:200]!r}, which no search has put there: names are relative, without '..'. "
        "Nothing was written. Remove that object, or the trial that it belongs to."
    )


def checked_entry(entry: Any, where: str) -> dict[str, Any]:
    """Return hash, size and content (None: not in the index) of one file.

    Raises `StoreDamaged` if one of them is malformed, or if the content has another hash or size.
    """
    if not isinstance(entry, dict) or entry.keys() - {"sha256", "size", "content"}:
        raise _damaged(where, "an entry has other fields than sha256, size and content")
    sha256, size, content = entry.get("sha256"), entry.get("size"), entry.get("content")
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise _damaged(where, f"{str(sha256)[:100]!r} is no SHA-256")
    if type(size) is not int or size < 0:
        raise _damaged(where, f"{str(size)[:100]!r} is no size")
    if content is not None and _digest(content) != (sha256, size):
        raise _damaged(where, f"a content isn't the one of SHA-256 {sha256}")
    return {"sha256": sha256, "size": size, "content": content}


def refuse_way_out(folder: Path, name: str) -> None:
    """Raise `StoreDamaged` if a link in the folder would lead a file of this name out of it."""
    if not (folder / name).parent.resolve().is_relative_to(folder.resolve()):
        raise StoreDamaged(f"{folder / name} would be written elsewhere, by a link. Remove {folder}.")


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and len(part.encode(errors="replace")) <= _LONGEST_NAME


def _digest(content: Any) -> tuple[str, int] | None:
    try:
        found = base64.b64decode(content, validate=True)
    except (binascii.Error, TypeError, ValueError):
        return None
    return hashlib.sha256(found).hexdigest(), len(found)


def _damaged(where: str, why: str) -> StoreDamaged:
    return StoreDamaged(f"{where} is damaged: {why}. Nothing was written. Remove the trial that it belongs to.")
