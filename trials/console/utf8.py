"""UTF-8 for file names and text, in a command and in all processes that it starts, whatever the locale says.

Ray, Arrow and the model libraries take file names to be UTF-8. Under another locale (LC_ALL=de_DE.ISO-8859-1) Python
doesn't: their files would lie in a folder with another name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress

from trials.errors import InputError

_PACKAGES = ("orchestrator", "scripts", "trials")
_FOLDERS = ("HOME", "HF_HOME", "HF_DATASETS_CACHE", "TMPDIR", "XDG_CACHE_HOME")


def use_utf8() -> None:
    """Restart this command in Python's UTF-8 mode if the locale isn't UTF-8; it doesn't return then.

    Raises `InputError` for names that aren't UTF-8 themselves. Also raises it in another project's program, which isn't
    restarted.
    """
    encoding = sys.getfilesystemencoding()
    if encoding.lower() not in ("utf-8", "utf8"):
        if not _is_command():
            raise InputError(f"this locale's names of files are {encoding}. Set PYTHONUTF8=1, or a UTF-8 locale.")
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8=1", *sys.orig_argv[1:]])
    for what, name in _names():
        if not _is_utf8(name):
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"{what} {shown!r} is not UTF-8. Rename what it names, or give it in UTF-8.")


def _is_command() -> bool:
    """Return whether this process is `python -m` of one of our modules."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.partition(".")[0] in _PACKAGES


def _names() -> Iterator[tuple[str, str]]:
    """Yield the names that become file names here or in libraries, each with a word for its origin."""
    yield from (("the argument", name) for name in sys.argv[1:])
    yield from ((name, os.environ[name]) for name in _FOLDERS if name in os.environ)
    with suppress(OSError):  # a folder that is gone
        yield "the current folder", os.getcwd()  # noqa: PTH109


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
