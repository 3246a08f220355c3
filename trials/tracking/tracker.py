"""Queue of a trial's metrics for Weights & Biases: the trial adds to it, and never waits.

`wandb.init` may take minutes, hang in a lock or end its process, and a thread that hangs can't be ended. So wandb runs
in a process of its own (`trials.tracking.tracker_process`). A thread here feeds that process, and ends it if it gives
no answer for too long.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import select
import shlex
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trials.console.troubles import TROUBLES, ReportingFailures

logger = logging.getLogger(__name__)

ABOUT = "W&B"
_PROGRAM = Path(__file__).with_name("tracker_process.py")
_MOST_AT_ONCE = 100


@dataclass(frozen=True)
class Limits:
    """Time limits for W&B, in seconds, and the limit of waiting entries."""

    start: float = 60.0
    """Until its process has started and imported wandb."""
    silence: float = 20.0
    """Until it has begun a run, logged entries or finished the run, online."""
    offline: float = 60.0
    """Until it has begun a run, logged entries or finished the run, offline."""
    farewell: float = 20.0
    """Minimum time after a trial's end to write to disk what the server didn't accept."""
    again: float = 300.0
    """From a failure until this process tries the server again."""
    entries: int = 10_000
    """Most entries that wait; the oldest of more are dropped."""


@dataclass(frozen=True)
class TrackedRun:
    """Arguments of `wandb.init` for a run, under the same names."""

    dir: str
    project: str
    group: str
    name: str
    id: str
    resume: str | None
    config: dict[str, Any]


class TrackingError(Exception):
    """W&B can't be used; the message is W&B's own, or says that there was no answer."""


class Outage:
    """Recent failure of W&B's server: trials of this process are then logged offline at once."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def is_on(self) -> bool:
        """Whether it is too early to try the server again."""
        return time.monotonic() < self._until

    def record(self, seconds: float) -> None:
        """Record a failure; the server is tried again after `seconds`."""
        self._until = time.monotonic() + seconds


OUTAGE = Outage()
"""Outage as seen by all trackers of this process."""


class Tracker:
    """Logger of one trial's metrics into a run, online or else offline in the trial's folder.

    No method raises or waits, except `close`, which waits for a limited time.
    """

    def __init__(
        self,
        run: TrackedRun,
        *,
        online: bool,
        limits: Limits = Limits(),
        outage: Outage = OUTAGE,
        troubles: ReportingFailures = TROUBLES,
    ) -> None:
        self._run, self._online, self._limits = run, online, limits
        self._outage, self._troubles = outage, troubles
        self._entries: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=limits.entries)
        self._count = 0
        self._has_dropped = self._is_closing = self._is_offline = self._is_given_up = False
        self._changed = threading.Condition()
        self._process: _Process | None = None
        self._folder: str | None = None
        """Folder of the current run, in which wandb keeps all of it; None: no run has begun."""
        # The thread gets this thread's context, so that its messages go to the trial's log.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="tracker", daemon=True)
        self._thread.start()

    def log(self, figures: Mapping[str, float]) -> None:
        """Add an entry to the queue."""
        with self._changed:
            is_full = len(self._entries) == self._limits.entries
            self._entries.append((self._count, dict(figures)))
            self._count += 1
            self._changed.notify_all()
        if is_full and not self._has_dropped:
            self._has_dropped = True
            self._troubles.record(
                ABOUT, f"more than {self._limits.entries:,} figures wait for it, the oldest are dropped"
            )

    def close(self, seconds: float) -> None:
        """Finish the run within `seconds`; if that fails, within as many more (at least `farewell`) offline."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._is_offline:
            self._end_process(f"it wasn't through {seconds:.0f} s after the trial's end")
        self._thread.join(max(seconds, self._limits.farewell))
        if self._thread.is_alive():
            self._is_given_up = True
            self._end_process("")
            self._troubles.record(ABOUT, "it couldn't be logged offline in time either, and is given up for this trial")

    def _end_process(self, reason: str) -> None:
        process = self._process
        if process is not None:
            process.end(reason)

    def _work(self) -> None:
        try:
            if not self._online:
                self._log_offline(None)
            elif self._outage.is_on:
                self._log_offline("its server failed some minutes ago, and isn't asked yet")
            else:
                self._log_online()
        except Exception as error:
            if not self._is_given_up:
                self._troubles.record(ABOUT, f"{error}. The trial goes on without it")

    def _log_online(self) -> None:
        try:
            self._track("online", self._limits.silence, None)
        except TrackingError as error:
            self._outage.record(self._limits.again)
            if self._is_over():
                self._troubles.record(ABOUT, f"{error}. All of the run is on disk: {self._remedy(self._folder)}")
            else:
                self._log_offline(str(error))

    def _log_offline(self, reason: str | None) -> None:
        if not self._is_given_up:
            self._is_offline = True
            self._track("offline", self._limits.offline, reason)

    def _is_over(self) -> bool:
        """Return whether the run already holds all entries, and no more will come."""
        with self._changed:
            return self._is_closing and not self._entries and self._folder is not None

    def _track(self, mode: str, seconds: float, reason: str | None) -> None:
        """Log all entries in one run; `reason` is the warning why the run isn't online as wanted, or None.

        `seconds` is the limit for each answer.
        """
        cut_off, self._folder = self._folder, None
        with _process(self._limits.start) as self._process:
            begin = {**asdict(self._run), "mode": mode, "seconds": 0.75 * seconds, "parent": os.getpid()}
            begun = self._process.ask({"begin": begin}, seconds)
            self._folder = begun["folder"]
            if reason is not None:
                self._troubles.record(
                    ABOUT, f"{reason}. The trial is logged offline: {self._remedy(cut_off, self._folder)}"
                )
            elif begun["url"]:
                logger.info("%s: %s", ABOUT, begun["url"])
            while (entries := self._next()) is not None:
                self._process.ask({"log": [figures for _, figures in entries]}, seconds)
                self._forget(entries[-1][0])
            self._process.ask({"finish": True}, seconds)

    def _next(self) -> Sequence[tuple[int, Mapping[str, float]]] | None:
        """Wait for entries and return the first of them; None: no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries or self._is_closing)
            return list(self._entries)[:_MOST_AT_ONCE] or None

    def _forget(self, last: int) -> None:
        """Drop entries up to number `last` from the queue: they are in the run."""
        with self._changed:
            while self._entries and self._entries[0][0] <= last:
                self._entries.popleft()

    @staticmethod
    def _remedy(*folders: str | None) -> str:
        return f"upload it with: wandb sync {shlex.join([folder for folder in folders if folder])}"


class _Process:
    """Running process of `trials.tracking.tracker_process`. Raises `TrackingError` if a request fails."""

    def __init__(self) -> None:
        self._rest = b""
        self._ended_because = ""
        self.settings = _settings()
        """wandb's environment variables when the process started."""
        # Its own process group, because Ctrl-C is for the trial; its parent's session, so that it ends with that.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,
        )

    @property
    def is_there(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def start(self, seconds: float) -> None:
        """Wait until the process has imported wandb."""
        self._answer(seconds)

    def close(self) -> None:
        """Kill the process and close its pipes; the process that wandb starts itself ends after that."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def end(self, reason: str) -> None:
        """Kill the process, from any thread; a thread that waits for its answer gets `reason`."""
        self._ended_because = reason
        self._process.kill()

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Send a message and return the answer, which must come within `seconds`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
        except OSError:
            raise self._has_ended() from None
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ends, pipe = time.monotonic() + seconds, self._process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while b"\n" not in self._rest:
            if not poll.poll(max(0.0, ends - time.monotonic()) * 1000):
                raise TrackingError(f"it has said nothing for {seconds:.0f} s")
            read = os.read(pipe, 65536)
            if not read:
                raise self._has_ended()
            self._rest += read
        line, self._rest = self._rest.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise TrackingError(str(found["error"]))
        return found

    def _has_ended(self) -> TrackingError:
        if self._ended_because:
            return TrackingError(self._ended_because)
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return TrackingError("its process doesn't listen")
        return TrackingError(f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}")


_idle: list[_Process] = []
"""Processes that have finished a run and can take another, because a start takes seconds of a core.

They end with this process.
"""


@contextmanager
def _process(start_seconds: float) -> Iterator[_Process]:
    """Yield a process, and keep it for the next run unless something went wrong."""
    try:
        process = _idle.pop()
        is_new = not process.is_there or process.settings != _settings()
    except IndexError:
        is_new = True
    if is_new:
        process = _Process()
    try:
        if is_new:
            process.start(start_seconds)
        yield process
    except BaseException:
        process.close()
        raise
    _idle.append(process)


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def end_idle_processes() -> None:
    """End the processes that wait for another run."""
    while _idle:
        _idle.pop().close()


def check_key(seconds: float) -> str:
    """Ask W&B's server whether it knows this environment's key; return the server's address.

    Raises `TrackingError` with the reason, after `seconds` at most.
    """
    ends = time.monotonic() + seconds
    process = _Process()
    try:
        process.start(seconds)
        left = max(0.1, ends - time.monotonic())
        return str(process.ask({"check": max(1.0, left - 1.0)}, left)["host"])
    finally:
        process.close()
