"""Standard output and error of a command that outlives its console.

A console can go: a closed window, `| head -1`, a `tee` that Ctrl-C has ended. It is then given up for good. Its
descriptor leads to the null device, so that neither a library in C nor a child process fails. A command of hours
doesn't even wait for its console. A person can stop a terminal (Ctrl-S), and the other end of an SSH connection can
sleep.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from trials.console.console_stream import ConsoleStream, Writer, lead_nowhere
from trials.console.line_log import LineCopy, LineLog

_SETTLING_SECONDS = 5.0

_streams: list[ConsoleStream] = []
"""Standard output and error, once `take_over` has replaced them."""


def take_over() -> bool:
    """Replace this process's stdout and stderr by streams that outlive their console; return whether they are in place.

    Not done if other code, such as pytest, has replaced them already. Closed descriptors are led to the null device.
    Else the next file to be opened would get their number, and everything that is printed.
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
    _streams.append(ConsoleStream(_descriptor(1, sys.stdout), "standard output"))
    _streams.append(ConsoleStream(_descriptor(2, sys.stderr), "standard error"))
    sys.stdout = sys.__stdout__ = _text(_streams[0], sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(_streams[1], sys.stderr)  # type: ignore[misc]
    return True


def _descriptor(number: int, before: Any) -> int:
    """Return a stream's descriptor, or a new one to the null device if Python found it closed.

    The number of a closed descriptor may belong to a file of another library since.
    """
    return number if before is not None else os.open(os.devnull, os.O_WRONLY)


@contextmanager
def survives_hangup() -> Iterator[None]:
    """Keep this process, and the children that it starts inside, running when their terminal is closed.

    Must be entered by the main thread.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL if before is None else before)


def speak_into(log: LineLog) -> None:
    """Send all output to a log first, and never wait for the console. For commands of hours."""
    copy_output(log)
    write_behind()


def copy_output(log: LineLog, *, stdout: bool = True) -> None:
    """Copy further output to a log before it is shown; say there if the console is gone.

    With `stdout` False, only standard error is copied.
    """
    for stream in _streams:
        if stdout or stream is not _streams[0]:
            stream.copies = [LineCopy(log)]
    for stream in _streams:
        stream.call_when_gone(lambda gone, reason: _tell(log, gone, reason))


def divert_errors(log: LineLog) -> None:
    """Send to a log what C libraries and children write to standard error; Python's output is shown as before.

    Examples are the output of a crash, or of a child whose console could go later. If the log can't be written, nothing
    changes.
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
    """Write to standard error, also where another library has put a stream of its own before it."""
    file = sys.__stderr__ if _streams else sys.stderr
    if file is not None:
        file.write(text)


def write_behind() -> None:
    """Write to the console in a thread from now on, so that nothing waits for it."""
    if not _streams or _streams[0].writer is not None:
        return
    writer = Writer()
    for stream in _streams:
        stream.writer = writer
    os.register_at_fork(after_in_child=_write_at_once)  # a child has no thread that writes
    atexit.register(drain_console)


def drain_console(seconds: float = _SETTLING_SECONDS) -> None:
    """Wait until the console has taken all output, at most `seconds`. Must be called before `os._exit`."""
    for file in (sys.stdout, sys.stderr):
        with suppress(Exception):
            file.flush()
    for stream in _streams[:1]:
        if stream.writer is not None:
            stream.writer.drain(seconds)
    for copy in [copy for stream in _streams for copy in stream.copies]:
        copy.close()


def _tell(log: LineLog, gone: ConsoleStream, reason: str) -> None:
    """Say once in the log that the console is gone, and on the other stream, if that still has a reader."""
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
    """Return a text stream on a raw one, encoded as `before`; what the encoding lacks is escaped, no error."""
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
