"""Standard output and error of a command, which outlives whoever reads them.

A closed window, `| head -1`, a `tee` that Ctrl-C has ended: such a console is given up for good. Its descriptor leads
to the null device from then on, so that neither a library in C nor a child process fails either. A command of hours
doesn't even wait for its console: a person can stop a terminal (Ctrl-S), and the other end of an SSH connection sleep.
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
    _streams.append(ConsoleStream(_descriptor(1, sys.stdout), "standard output"))
    _streams.append(ConsoleStream(_descriptor(2, sys.stderr), "standard error"))
    sys.stdout = sys.__stdout__ = _text(_streams[0], sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(_streams[1], sys.stderr)  # type: ignore[misc]
    return True


def _descriptor(number: int, before: Any) -> int:
    """Where a stream goes. One that Python found closed may have lent its number to a file since, which isn't ours."""
    return number if before is not None else os.open(os.devnull, os.O_WRONLY)


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
        stream.call_when_gone(lambda gone, reason: _tell(log, gone, reason))


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
    writer = Writer()
    for stream in _streams:
        stream.writer = writer
    os.register_at_fork(after_in_child=_write_at_once)  # a child has no thread that writes
    atexit.register(drain_console)


def drain_console(seconds: float = _SETTLING_SECONDS) -> None:
    """Waits until the console has taken what was said. To be called before `os._exit`."""
    for file in (sys.stdout, sys.stderr):
        with suppress(Exception):
            file.flush()
    for stream in _streams[:1]:
        if stream.writer is not None:
            stream.writer.drain(seconds)
    for copy in [copy for stream in _streams for copy in stream.copies]:
        copy.close()


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
