"""Token that every call to a Ray carries, in a file that only this user can read. Imports no Ray.

Ray 2.60 makes that file by itself, readable for all users. So it is made here first, or its mode is corrected.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
_FOLDER = ".ray"
_OTHERS = 0o077
"""Permission bits of the group and of all other users."""


def token_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path where Ray looks for the token. Raises `RuntimeError` if this user has no home."""
    named = environ.get(PATH_VARIABLE)
    return Path(named) if named else Path(environ.get("HOME") or Path.home()) / _FOLDER / "auth_token"


def private_token(folder: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Make sure that there is a token that only this user can read; return the variable that names it to Ray.

    The token is in the home, for all of this user's Rays. If that fails, it is in `folder`, which only this user may
    enter. Returns no variable if RAY_AUTH_TOKEN is set, or if RAY_AUTH_MODE asks for no token.
    """
    if environ.get("RAY_AUTH_TOKEN") or environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return {}
    path = folder / "auth_token"
    with suppress(OSError, RuntimeError):
        if ensure_token(token_path(environ)):
            path = token_path(environ)
    if not path.exists():
        ensure_token(path)
    return {PATH_VARIABLE: str(path)}


def ensure_token(path: Path) -> bool:
    """Make the file (0600) if there is none, in a folder of its own (0700), and remove others' rights to it.

    Returns False if the file is empty, or if it is another user's and so no secret. Raises `OSError` if it can't be
    written.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _make(path)
    return _mend(path) and bool(path.read_text(encoding="utf-8").strip())


def mend_token(environ: Mapping[str, str] = os.environ) -> None:
    """Remove others' rights to an existing token, if it is this user's. Does nothing else."""
    with suppress(OSError, RuntimeError):
        _mend(token_path(environ))


def _make(path: Path) -> None:
    """Make the file whole or not at all; of two processes at the same time, one makes it."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _mend(path: Path) -> bool:
    """Remove others' rights to the file; return False if it isn't this user's.

    Of folders only Ray's own is changed: others hold other files too.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return False
    for each in (path, path.parent):
        mode = stat.S_IMODE(each.stat().st_mode)
        if mode & _OTHERS and (each == path or each.name == _FOLDER):
            each.chmod(mode & ~_OTHERS)
    return True
