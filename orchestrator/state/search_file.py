"""Reads and writes search.json: a `Search`, and what the search ran on.

The fields of `Deadline` and `Placement` lie beside the search's own. Unknown keys are of other versions, and ignored.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.state.search import Search
from trials.errors import RunFolderError
from trials.system.damage import DamagedFile, in_words, read_value
from trials.system.files import write_json
from trials.system.gpus import gpu_count

FORMAT = 1
"""Format number of run folders that this version writes to search.json; folders without a number have format 0."""
_PACKAGES = ("ray", "optuna", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")
_SEARCHES = TypeAdapter(Search)


def write_search_file(path: Path, search: Search) -> None:
    """Write search.json."""
    content = _SEARCHES.dump_python(search, mode="json", by_alias=True)
    deadline, placement = content.pop("deadline"), content.pop("placement") or {}
    derived = {"rungs": search.rungs, "seed": search.recipe.search.seed, "versions": versions(), "hardware": hardware()}
    write_json(path, {"format": FORMAT, **content, **deadline, **derived, **placement})


def read_search_file(path: Path) -> Search:
    """Read search.json. Raises `RunFolderError` if it is absent, unreadable, or made by a newer version."""
    try:
        content = read_value(path)
    except DamagedFile as error:
        raise RunFolderError(f"{path} can't be read: {error.reason}. Restore it.") from error
    if content is None:
        raise RunFolderError(f"{path.parent} holds no search: there is no search.json in it. Give a run folder.")
    number = content.get("format", 0) if isinstance(content, dict) else 0
    if isinstance(number, int) and number > FORMAT:
        raise RunFolderError(
            f"{path.parent} was made by a newer version: its format is {number}, and this version reads up to "
            f"{FORMAT}. Use the version that made it, or a newer one."
        )
    try:
        return _SEARCHES.validate_json(json.dumps(_nested(content)))
    except ValidationError as error:
        where = in_words(error).removeprefix("deadline.").removeprefix("placement.")
        raise RunFolderError(f"{path} can't be read: {where}. Restore it.") from error


def _nested(content: Any) -> Any:
    """Return the content with deadline and placement as values of their own, which pick their keys from all."""
    if not isinstance(content, dict):
        return content
    placement = None
    if (engines := content.get("engines")) is not None:
        # Earlier versions wrote 0 engines for TRL, under which every trial had a process of its own.
        placement = {**content, "engines": engines or content.get("slots", 0)}
    return {**content, "deadline": content, "placement": placement}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect results; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return architecture, cores, memory (GiB) and number of GPUs of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "gpus": gpu_count(),
    }
