"""Whether the files of an export are still those that were proved, by the hashes in its manifest.json. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from trials.adapter_check import sha256_of
from trials.errors import ModelError

_MANIFEST = "manifest.json"
_FOR_PEOPLE = frozenset({"README.md"})


def refuse_changed(path: str) -> None:
    """Raises `ModelError` if a file that is loaded isn't what the export's manifest says.

    `path` is an export or its folder of merged weights. Other folders, and names on the hub, are none of either.
    """
    folder = Path(path)
    for name, sha256 in _wanted(folder).items():
        file = folder / name
        if not file.is_file():
            raise ModelError(f"{path} isn't the export that was proved: {name} is missing. Export it again.")
        found = sha256_of(file)
        if found != sha256:
            raise ModelError(
                f"{path} isn't the export that was proved: {name} has SHA-256 {found}, and {_MANIFEST} says {sha256}. "
                f"Export it again, or copy it again; to use it as it is, remove {_MANIFEST}."
            )


def _wanted(folder: Path) -> Mapping[str, str]:
    """Hashes of the files that lie directly in a folder, by their names; empty if no manifest speaks of it."""
    below = {name: sha256 for name, sha256 in _files(folder).items() if "/" not in name and name not in _FOR_PEOPLE}
    if below:
        return below
    prefix = f"{folder.resolve().name}/"
    of_parent = _files(folder.resolve().parent) if folder.is_dir() else {}
    names = {name.removeprefix(prefix): sha256 for name, sha256 in of_parent.items() if name.startswith(prefix)}
    return {name: sha256 for name, sha256 in names.items() if "/" not in name}


def _files(folder: Path) -> dict[str, str]:
    """Empty without a manifest of ours."""
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return {name: sha256 for name, sha256 in files.items() if isinstance(sha256, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
