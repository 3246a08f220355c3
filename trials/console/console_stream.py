"""Raw stream to a console that may be gone, or take nothing; neither is an error for the code that writes.

Threads: the one of `Writer`, which writes for commands that don't wait.
"""

from __future__ import annotations

import errno
import io
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from trials.console.line_log import LineCopy

_GONE = frozenset(
    {
        errno.EPIPE,
        errno.EIO,
        errno.ENXIO,
        errno.ENODEV,
        errno.EBADF,
        errno.ECONNRESET,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
    }
)
"""Errors of a write to a console that has no reader any more."""
_MOST_WAITING = 1000
"""Most pieces of text that wait for a console which takes nothing; later ones are dropped."""


class ConsoleStream(io.RawIOBase):
    """Raw stream to a descriptor of this process; a reader that is gone is no error."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.copies: list[LineCopy] = []
        self.writer: Writer | None = None
        """Writes for this stream in a thread. None: the stream itself waits until its console has taken everything."""
        self.on_gone: Callable[[ConsoleStream, str], None] | None = None
        self._descriptor = descriptor
        self._gone: str | None = None
        """Reason why the console is gone; None: it is there."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def move(self, descriptor: int) -> None:
        """Write everything to another descriptor from now on."""
        self._descriptor = descriptor

    def isatty(self) -> bool:
        """Return whether a terminal is still there."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return True, also when the console is gone."""
        return True

    def write(self, content: Any, /) -> int:
        """Copy, then show a piece of text. Raises `OSError` for a full disk, unless a `Writer` writes it."""
        piece = bytes(content)
        for copy in self.copies:
            copy.write(piece)
        self.show(piece)
        return len(piece)

    def show(self, piece: bytes) -> None:
        """Show a piece of text without copying it."""
        if self.writer is None:
            self.write_out(piece)
        else:
            self.writer.put(self, piece)

    def call_when_gone(self, on_gone: Callable[[ConsoleStream, str], None]) -> None:
        """Call `on_gone` with this stream and a reason when the console goes, or at once if it is gone already."""
        self.on_gone = on_gone
        if self._gone is not None:
            on_gone(self, self._gone)

    def write_out(self, piece: bytes) -> None:
        """Write to the descriptor, however long that takes; give the console up if it is gone."""
        while piece and self._gone is None:
            try:
                piece = piece[os.write(self._descriptor, piece) :]
            except BlockingIOError:  # another program has made the terminal that it shares non-blocking
                select.select([], [self._descriptor], [], 1.0)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._gone = os.strerror(error.errno or 0)
        lead_nowhere(self._descriptor)
        if self.on_gone is not None:
            self.on_gone(self, self._gone)


class Writer:
    """Thread that writes to consoles, in the order of the requests."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[ConsoleStream, bytes] | threading.Event] = SimpleQueue()
        threading.Thread(target=self._write, name="console", daemon=True).start()

    def put(self, stream: ConsoleStream, piece: bytes) -> None:
        """Queue a piece of text for writing; drop it if too many wait already. Safe in a signal handler."""
        if self._waiting.qsize() < _MOST_WAITING:
            self._waiting.put((stream, piece))

    def drain(self, seconds: float) -> None:
        """Wait until all is written, but no longer than `seconds`."""
        is_done = threading.Event()
        self._waiting.put(is_done)
        is_done.wait(seconds)

    def _write(self) -> None:
        while True:
            task = self._waiting.get()
            if isinstance(task, threading.Event):
                task.set()
                continue
            with suppress(OSError):  # a full disk, which may have room again for the next one
                task[0].write_out(task[1])


def lead_nowhere(descriptor: int) -> None:
    """Make a descriptor lead to the null device, for this process and the children that it starts."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    else:
        os.set_inheritable(null, True)
