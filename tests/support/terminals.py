"""Commands on a terminal of their own, which can be closed under them, and what they are asked about afterwards."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.cli import ROOT, environment

_TAKES_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A terminal whose only window runs a command; closing it hangs up, as a real one does."""

    def __init__(self, command: Sequence[str], **environ: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKES_TERMINAL, *command],
            cwd=ROOT,
            env=environment(**environ),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def read_until(self, words: str) -> str:
        """What it shows until these words have come."""
        seen = b""
        while words.encode() not in seen:
            seen += os.read(self._master, 4096)
        return seen.decode(errors="replace")

    def close(self) -> None:
        """Closes the window."""
        os.close(self._master)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 900) -> None:
    """Waits until something is so while a process runs."""
    ends = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before that"
        assert time.monotonic() < ends
        time.sleep(0.1)


def says(log: Path, words: str) -> bool:
    """Whether a log says something by now."""
    return log.exists() and words in log.read_text(encoding="utf-8")
