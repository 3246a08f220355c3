"""The token that every call to a Ray carries: in a file that nobody but this user can read. Imports no Ray.

Ray 2.60 makes that file by itself, readable for all. So it's made here first, or its mode is mended.
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
"""Rights of the group and of everybody."""


def token_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where Ray looks for the token. Raises `RuntimeError` if this user has no home."""
    named = environ.get(PATH_VARIABLE)
    return Path(named) if named else Path(environ.get("HOME") or Path.home()) / _FOLDER / "auth_token"


def private_token(folder: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Makes sure that there's a token, and that nobody else reads it; returns the variables that name it to Ray.

    It's in the home, for all of this user's Rays, or, where that can't be, in `folder`, which nobody else may enter.
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
    """Makes the file (0600) where there's none, in a folder of its own (0700), and takes others' rights to it away.

    False if it isn't this user's, who then isn't the only one to know it. Raises `OSError` where it can't be written.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _make(path)
    return _mend(path) and bool(path.read_text(encoding="utf-8").strip())


def mend_token(environ: Mapping[str, str] = os.environ) -> None:
    """Takes others' rights to a token that is there away, if it's this user's. Does nothing else."""
    with suppress(OSError, RuntimeError):
        _mend(token_path(environ))


def _make(path: Path) -> None:
    """Whole or not at all, and by one of two that do so at once."""
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
    """Whether the file is this user's. Of folders only Ray's own is touched: others hold other things too."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return False
    for each in (path, path.parent):
        mode = stat.S_IMODE(each.stat().st_mode)
        if mode & _OTHERS and (each == path or each.name == _FOLDER):
            each.chmod(mode & ~_OTHERS)
    return True
