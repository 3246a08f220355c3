"""Standard output and error of a command, which outlives whoever reads them.

A closed window, `| head -1`, a `tee` that Ctrl-C has ended: such a console is given up for good. Its descriptor leads
to the null device from then on, so that neither a library in C nor a child process fails either. A command of hours
doesn't even wait for its console: a person can stop a terminal (Ctrl-S), and the other end of an SSH connection sleep.

Threads: the one of `_Writer`, which writes for commands that don't wait.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

from trials.line_log import LineCopy, LineLog

_GONE = frozenset(
    {errno.EPIPE, errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBADF, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN}
)
"""What writing fails with where there's no reader any more."""
_MOST_WAITING = 1000
"""Pieces of text that wait for a console which takes nothing; later ones are left out there."""
_SETTLING_SECONDS = 5.0


class ConsoleStream(io.RawIOBase):
    """A raw stream to one of this process's descriptors, for which a reader that is gone is no error."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.copies: list[LineCopy] = []
        self.writer: _Writer | None = None
        """Writes for this stream; None: it waits itself until its console has taken everything."""
        self.on_gone: Callable[[ConsoleStream, str], None] | None = None
        self._descriptor = descriptor
        self._gone: str | None = None
        """Why nobody reads it any more."""

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def move(self, descriptor: int) -> None:
        """Shows everything on another descriptor from now on."""
        self._descriptor = descriptor

    def isatty(self) -> bool:
        """Whether a terminal is still there."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """It is, for ever."""
        return True

    def write(self, content: Any, /) -> int:
        """Copies and then shows a piece of text. Raises `OSError` for a full disk, if it isn't another that writes."""
        piece = bytes(content)
        for copy in self.copies:
            copy.take(piece)
        self.show(piece)
        return len(piece)

    def show(self, piece: bytes) -> None:
        """Shows a piece of text without copying it."""
        if self.writer is None:
            self.write_out(piece)
        else:
            self.writer.put(self, piece)

    def tell_if_gone(self, on_gone: Callable[[ConsoleStream, str], None]) -> None:
        """Has somebody told when the console goes, or at once if it is gone already."""
        self.on_gone = on_gone
        if self._gone is not None:
            on_gone(self, self._gone)

    def write_out(self, piece: bytes) -> None:
        """Writes to the descriptor, however long that takes; gives the console up if it is gone."""
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


class _Writer:
    """Writes to consoles in a thread of its own, in the order in which it was asked to."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[ConsoleStream, bytes] | threading.Event] = SimpleQueue()
        threading.Thread(target=self._write, name="console", daemon=True).start()

    def put(self, stream: ConsoleStream, piece: bytes) -> None:
        """Takes a piece of text to be written; drops it if too many wait already. Safe in a signal's handler."""
        if self._waiting.qsize() < _MOST_WAITING:
            self._waiting.put((stream, piece))

    def settle(self, seconds: float) -> None:
        """Waits until all is written, but no longer than so many seconds."""
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


_streams: list[ConsoleStream] = []
"""Standard output and error, once they were taken over."""


def take_over() -> bool:
    """Puts streams that outlive their readers in the place of this process's; whether they are there.

    Not where somebody has put others there already, such as pytest. Descriptors that were closed lead to the null
    device: else the next file to be opened would get their number, and whatever is printed.
    """
    if _streams:
        for stream in _streams:
            stream.copies, stream.on_gone = [], None
        return True
    if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        return False
    for number in (0, 1, 2):
        if not _is_open(number):
            lead_nowhere(number)
    _streams.extend([ConsoleStream(1, "standard output"), ConsoleStream(2, "standard error")])
    sys.stdout = sys.__stdout__ = _text(_streams[0], sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(_streams[1], sys.stderr)  # type: ignore[misc]
    return True


@contextmanager
def survives_hangup() -> Iterator[None]:
    """Has this process, and the children that it starts inside, go on when their terminal is closed.

    To be entered by the main thread.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL if before is None else before)


def speak_into(log: LineLog) -> None:
    """For commands of hours: from now on all that is said goes to a log first, and nothing waits for the console."""
    copy_output(log)
    write_behind()


def copy_output(log: LineLog, *, stdout: bool = True) -> None:
    """Copies what is said from now on to a log before it's shown; says there if the console is gone."""
    for stream in _streams:
        if stdout or stream is not _streams[0]:
            stream.copies = [LineCopy(log)]
    for stream in _streams:
        stream.tell_if_gone(lambda gone, reason: _tell(log, gone, reason))


def divert_errors(log: LineLog) -> None:
    """Has what libraries in C and children say on standard error go to a log; what Python says is shown as before.

    Such as what a crash leaves, or a child whose console could go later. Where the log can't be written to, nothing
    is changed.
    """
    if not _streams:
        return
    try:
        file = log.open()
    except OSError:
        return
    _streams[1].move(os.dup(2))
    os.dup2(file, 2)
    os.close(file)


def write_error(text: str) -> None:
    """Writes to standard error, also where another library has put a stream of its own before it."""
    file = sys.__stderr__ if _streams else sys.stderr
    if file is not None:
        file.write(text)


def write_behind() -> None:
    """From now on nothing waits for the console."""
    if not _streams or _streams[0].writer is not None:
        return
    writer = _Writer()
    for stream in _streams:
        stream.writer = writer
    os.register_at_fork(after_in_child=_write_at_once)  # a child has no thread that writes
    atexit.register(settle)


def settle(seconds: float = _SETTLING_SECONDS) -> None:
    """Waits until the console has taken what was said. To be called before `os._exit`."""
    for file in (sys.stdout, sys.stderr):
        with suppress(Exception):
            file.flush()
    for stream in _streams[:1]:
        if stream.writer is not None:
            stream.writer.settle(seconds)
    for copy in [copy for stream in _streams for copy in stream.copies]:
        copy.close()


def lead_nowhere(descriptor: int) -> None:
    """Makes a descriptor lead to the null device, for this process and the children that it starts."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    else:
        os.set_inheritable(null, True)


def _tell(log: LineLog, gone: ConsoleStream, reason: str) -> None:
    """Says once in the log that the console is gone, and on the other stream, should that still have a reader."""
    others = [stream for stream in _streams if stream is not gone]
    for stream in _streams:
        stream.on_gone = None
    log.append(f"the console is gone ({gone.name}: {reason}): this goes on without it")
    for other in others:
        other.show(f"nobody reads the {gone.name} any more: this goes on, and all is said in {log.path}\n".encode())


def _write_at_once() -> None:
    for stream in _streams:
        stream.writer = None


def _text(stream: ConsoleStream, before: Any) -> io.TextIOWrapper:
    """Text for a raw stream, encoded as it was; what the encoding lacks is escaped rather than an error."""
    encoding, errors = "utf-8", "backslashreplace"
    if before is not None:
        with suppress(OSError):
            before.flush()
        encoding, errors = before.encoding, before.errors
    errors = "backslashreplace" if errors == "strict" else errors
    return io.TextIOWrapper(stream, encoding, errors, line_buffering=True)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
