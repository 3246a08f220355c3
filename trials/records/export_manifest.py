"""Manifest of an export, manifest.json, and check that files are still the verified ones. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trials.errors import ModelError
from trials.records.adapter_check import how_it_differs

MANIFEST = "manifest.json"
_NEEDED = frozenset({"trial", "eval_loss", "verified", "base_model", "config", "files"})
"""Keys in the manifest of every version. Other programs call their files manifest.json too."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOR_PEOPLE = frozenset({"README.md"})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of an export of this project; None: the folder is no such export."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        hashes = found["files"]
        is_ours = found.keys() >= _NEEDED and bool(hashes)
        return found if is_ours and all(map(_SHA256.fullmatch, hashes.values())) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def refuse_changed(path: str) -> None:
    """Raise `ModelError` if a file that is loaded isn't what the export's manifest says.

    `path` is an export or its folder of merged weights. Other folders, and names on the hub, are not checked.
    """
    folder = Path(path)
    for name, sha256 in _wanted(folder).items():
        difference = how_it_differs(folder / name, sha256)
        if difference is not None:
            raise ModelError(
                f"{path} isn't the export that was proved: {name} {difference}. Export it again, or copy it again; "
                f"to use it as it is, remove {MANIFEST}."
            )


def _wanted(folder: Path) -> Mapping[str, str]:
    """Return the hashes of the files directly in a folder, by name; empty if no manifest lists them."""
    below = {name: sha256 for name, sha256 in _files(folder).items() if "/" not in name and name not in _FOR_PEOPLE}
    if below:
        return below
    prefix = f"{folder.resolve().name}/"
    of_parent = _files(folder.resolve().parent) if folder.is_dir() else {}
    names = {name.removeprefix(prefix): sha256 for name, sha256 in of_parent.items() if name.startswith(prefix)}
    return {name: sha256 for name, sha256 in names.items() if "/" not in name}


def _files(folder: Path) -> dict[str, str]:
    """Return the hashes in a folder's manifest by path; empty if it has no manifest of this project."""
    files: dict[str, str] = (read_manifest(folder) or {}).get("files", {})
    return files
