"""Environment of a Ray while it starts and runs: variables and files that it reads. Imports no Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator.ray_setup import folder as ray_folder
from orchestrator.ray_setup.address import named_cluster
from orchestrator.ray_setup.token import mend_token, private_token

_ON_ALL_ADDRESSES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Variable of Ray. If off, Ray uses 127.0.0.1 as this machine's address, and listens on no other.

That is what it does on Windows and macOS.
"""
_IN_HOME = ("TRITON_CACHE_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
"""Variables that name folders for libraries of trials to write to, in place of the home."""


def stay_on_loopback() -> None:
    """Make a Ray that is started here listen on 127.0.0.1 only, unless told otherwise; call before importing Ray."""
    if named_cluster() is None and "ray" not in sys.modules:
        os.environ.setdefault(_ON_ALL_ADDRESSES, "0")


@contextmanager
def surroundings(folder: Path | None = None) -> Iterator[None]:
    """Set variables for Ray: the locations of its temporary files and token, and the cluster that it joins.

    `folder` holds these files, and was made by `orchestrator.ray_setup.folder.make`; None: one is made, and removed at
    the end.
    """
    made = folder or ray_folder.make(ray_folder.planned())
    try:
        with _set(_variables(made, named_cluster())):
            yield
    finally:
        if folder is None:
            ray_folder.remove(made)


def _variables(folder: Path, cluster: str | None) -> Mapping[str, str]:
    if cluster is None:
        caches = instead_of_home(folder)
        return {"RAY_TMPDIR": str(folder), "RAY_ADDRESS": "local", **private_token(folder), **caches}
    mend_token()
    if os.environ.get("RAY_ADDRESS", "") not in ("", "auto"):
        return {"RAY_TMPDIR": str(folder)}
    # Ray reads the address from here: the file in the folder of all users may have changed since it was checked.
    (folder / "ray").mkdir(exist_ok=True)
    (folder / "ray" / "ray_current_cluster").write_text(cluster, encoding="utf-8")
    return {"RAY_TMPDIR": str(folder)}


def instead_of_home(folder: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return variables that make libraries write elsewhere if the home can't be written; empty if it can.

    Libraries then write below HF_HOME if it is set, else below `folder`.
    """
    if os.access(environ.get("HOME") or "~", os.W_OK | os.X_OK):
        return {}
    place = Path(environ.get("HF_HOME") or folder) / "qlora-orchestrator"
    return {name: environ.get(name) or str(place / name.lower()) for name in _IN_HOME}


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
