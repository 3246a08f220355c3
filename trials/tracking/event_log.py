"""TensorBoard events of a trial. A failure to write them is one warning in the trial's log."""

from __future__ import annotations

import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from trials.console.troubles import TROUBLES, ReportingFailures, only_reporting
from trials.records.trial_dir import TrialDir

if TYPE_CHECKING:
    from types import TracebackType

    from tensorboardX.event_file_writer import EventsWriter

_ABOUT = "TensorBoard"
_FLUSH_SECONDS = 30.0


class EventLog:
    """Writer that takes what transformers' `TensorBoardCallback` hands to a `SummaryWriter`.

    tensorboardX's own `SummaryWriter` (2.6) writes in a thread. If it can't write, the thread ends, and the caller that
    adds the eleventh event after that waits for ever. Here every event is written at once, to the same kind of file.
    TensorBoard hides what an earlier process logged of steps that are trained again.
    """

    def __init__(self, folder: TrialDir, steps_done: int, troubles: ReportingFailures = TROUBLES) -> None:
        self._troubles = troubles
        self._writer: EventsWriter | None = None
        self._flushed = 0.0
        if folder.is_written:
            with only_reporting(_ABOUT, self._give_up):
                self._open(folder, steps_done)

    def add_scalar(self, name: str, value: float, step: int, walltime: float | None = None) -> None:
        """Write one value of a step; `walltime` is in seconds since the epoch, None: now."""
        with only_reporting(_ABOUT, self._give_up):
            from tensorboardX.summary import scalar

            self._add(step, walltime, summary=scalar(name, value))

    def add_text(self, name: str, value: str, step: int | None = None) -> None:
        """Write a text, such as settings."""
        with only_reporting(_ABOUT, self._give_up):
            from tensorboardX.summary import text

            self._add(step or 0, None, summary=text(name, value))

    def flush(self) -> None:
        """Flush what was added to the file."""
        with only_reporting(_ABOUT, self._give_up):
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        """Close the file; nothing more is written."""
        writer, self._writer = self._writer, None
        with only_reporting(_ABOUT, self._give_up):
            if writer is not None:
                writer.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, folder: TrialDir, steps_done: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        events = folder.path / "tensorboard"
        is_known = events.exists()
        events.mkdir(parents=True, exist_ok=True)
        # By default tensorboardX names files after the current second, and overwrites an existing one.
        self._writer = EventsWriter(str(events / "events"), f".{os.getpid()}.{secrets.token_hex(2)}")
        if is_known:
            self._add(steps_done + 1, None, session_log=SessionLog(status=SessionLog.START))

    def _add(self, step: int, walltime: float | None, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if self._writer is None:
            return
        now = time.time()
        self._writer.write_event(Event(wall_time=walltime or now, step=step, **what))
        if now - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = now

    def _give_up(self, about: str, text: str) -> None:
        """Stop writing after an error, and report it; a file that breaks off in the middle is readable up to there."""
        self._writer = None
        self._troubles.record(about, f"{text}. The trial goes on without its events")
