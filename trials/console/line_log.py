"""Text file to which several processes append dated lines, each of which is in the file at once.

Times are UTC, as in `trials.console.logs`, so that files of machines in several time zones can be compared.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
"""Escape sequences and control characters, which are meant for a terminal."""


class LineLog:
    """Appends to one file. A file that can't be written to (a full disk, a removed folder) is no error here."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, text: str) -> bool:
        """Append every line of a text with the present time; return whether that worked.

        It is one write, so that processes don't cut each other's lines.
        """
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        lines = [_CONTROL.sub("", line) for line in text.splitlines()]
        content = "".join(f"{stamp} {line}\n" for line in lines if line).encode("utf-8", "backslashreplace")
        try:
            file = self.open()
        except OSError:
            return False
        try:
            return os.write(file, content) == len(content)
        except OSError:
            return False
        finally:
            with suppress(OSError):
                os.close(file)

    def open(self) -> int:
        """Return a descriptor that appends to the file. Raises `OSError` if it can't be opened."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


class LineCopy:
    """Joins the pieces that are written to a stream into lines, and appends them to a log. Thread-safe."""

    def __init__(self, log: LineLog) -> None:
        self._log = log
        self._rest = b""
        self._lock = threading.RLock()  # a signal's handler may print while its own thread does

    def write(self, content: bytes) -> None:
        """Take a piece of the stream; text after its last line break waits for the next piece."""
        with self._lock:
            whole, line_break, rest = (self._rest + content).rpartition(b"\n")
            self._rest = rest
        if line_break:
            self._log.append(whole.decode("utf-8", "replace"))

    def close(self) -> None:
        """Append a last line that has no line break."""
        self.write(b"\n")
