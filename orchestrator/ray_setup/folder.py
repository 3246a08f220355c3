"""Temporary folder of a search's own Ray: for this user alone, short enough for sockets, removed at the end.

Ray makes its own folders writable for all users, so they are in one that only this user can enter. Imports no Ray.

FOLDER/                    mode 0700
FOLDER/ray/                Ray's own temporary folder: sockets, logs, addresses
FOLDER/auth_token          the cluster's token, if it can't be in the home (`orchestrator.ray_setup.token`)
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from trials.errors import SearchBroken

_PREFIX = "qlora-"
_NAME = re.compile(_PREFIX + r"[0-9a-f]{8}")
_LONGEST_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""Longest path of a Unix socket."""
_IN_BASE = f"/{_PREFIX}12345678/ray/session_2026-11-29_18-38-00_869136_4194304/sockets/plasma_store"
LONGEST_BASE_BYTES = _LONGEST_SOCKET_BYTES - len(_IN_BASE)
_TAIL_BYTES = 16 * 1024
_MOST_LOGS = 12
_MOST_SESSIONS = 3
_KEPT = "ray-"
_TELLING = ("gcs_server.*", "raylet.*", "dashboard*.err", "dashboard.log", "monitor.err", "worker-*.err")
"""Patterns of Ray's logs that say why it broke, the most telling first."""


def named_base(environ: Mapping[str, str] = os.environ) -> tuple[str, Path]:
    """Return the variable that names the folder of temporary files (empty: none), and that folder, as Ray does."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if environ.get(name)), "")
    return name, Path(environ[name] if name else "/tmp")


def bases(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return the folders that can hold Ray's temporary folder, the named one first; empty if there is none."""
    others = ["/tmp", "/dev/shm", environ.get("XDG_RUNTIME_DIR", "")]
    found = [named_base(environ)[1], *(Path(other) for other in others if other)]
    return [folder for folder in dict.fromkeys(found) if why_not(folder) is None]


def why_not(base: Path) -> str | None:
    """Return why `base` can't hold Ray's temporary folder, in words; None: it can."""
    if not base.is_absolute():
        return "isn't an absolute path"
    length = len(os.fsencode(base))
    if length > LONGEST_BASE_BYTES:
        return f"has {length} bytes, and the names of Ray's sockets leave {LONGEST_BASE_BYTES} for it"
    if not base.is_dir():
        return "isn't a folder"
    return None if os.access(base, os.W_OK | os.X_OK) else "can't be written"


def planned(environ: Mapping[str, str] = os.environ) -> Path:
    """Return a new path for `make`, so that it can be recorded before there is anything to remove.

    Raises `SearchBroken` if no folder can hold it.
    """
    found = bases(environ)
    if not found:
        raise SearchBroken(f"Ray can't be started: {no_base(environ)}. Set TMPDIR=/tmp")
    return found[0] / f"{_PREFIX}{secrets.token_hex(4)}"


def no_base(environ: Mapping[str, str] = os.environ) -> str:
    """Return words for an error: no folder is fit, and why the named one isn't."""
    name, base = named_base(environ)
    return (
        f"no folder for Ray's temporary files: {name or 'the default'}, {base}, {why_not(base)}; nor can /tmp be used"
    )


def make(folder: Path) -> Path:
    """Make the folder, for this user alone. Raises `SearchBroken` if that fails."""
    try:
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)  # the umask may have taken more away than others' rights
    except OSError as error:
        raise SearchBroken(f"Ray can't be started: {folder} can't be made: {error.strerror}. Set TMPDIR") from error
    return folder


def remove(folder: Path) -> None:
    """Remove the folder, if `make` has made it for this user; what can't be removed is left."""
    if is_ours(folder):
        shutil.rmtree(folder, ignore_errors=True)


def is_ours(folder: Path) -> bool:
    """Return whether the folder is named as by `planned`, and is this user's; False for a link."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    is_named = _NAME.fullmatch(folder.name) is not None
    return is_named and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def keep_logs(folder: Path, logs: Path) -> None:
    """Copy the ends of Ray's own logs to `logs`/ray-<time>/ after a session broke. Errors are ignored.

    Only the logs of the last three sessions are kept.
    """
    if not is_ours(folder):
        return
    try:
        for session in sorted((folder / "ray").glob("session_*_*/logs")):
            _keep(session, logs / f"{_KEPT}{session.parent.name.removeprefix('session_')}")
        for old in sorted(logs.glob(f"{_KEPT}*_*"))[:-_MOST_SESSIONS]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        return


def _keep(session: Path, target: Path) -> None:
    found = [path for pattern in _TELLING for path in sorted(session.glob(pattern)) if path.stat().st_size]
    for path in found[:_MOST_LOGS]:
        target.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            (target / path.name).write_bytes(file.read())
