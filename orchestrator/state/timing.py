"""RUN/timing.json: measured duration of a search's end, to compare with the reserve.

training_over    time after the end of training (UTC)
exported         time at which the export was complete (UTC)
export_seconds   duration of the export, with its verification in a fresh process
report_seconds   duration of the report that the search writes by itself
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from orchestrator.state.run_dir import RunDir
from trials.errors import RunFolderError
from trials.system.files import write_json

TIMING_FILE = "timing.json"
TRAINING_OVER, EXPORTED = "training_over", "exported"


def record_moment(run: RunDir, what: str, now: datetime | None = None) -> None:
    """Record the time of TRAINING_OVER or EXPORTED, by default now. A folder that can't be written to is no error."""
    _note(run, what, (now or datetime.now(UTC)).isoformat(timespec="milliseconds"))


@contextmanager
def timed(run: RunDir, part: str) -> Iterator[None]:
    """Record the seconds that a part of the end (`export`, `report`) takes, if it raises no error."""
    began = time.monotonic()
    yield
    _note(run, f"{part}_seconds", round(time.monotonic() - began, 3))


def read_timing(run: RunDir) -> Mapping[str, Any]:
    """Return the content of timing.json; empty if the file is absent or can't be read."""
    try:
        found = run.read_json(TIMING_FILE)
    except RunFolderError:
        return {}
    return found if isinstance(found, dict) else {}


def end_seconds(timing: Mapping[str, Any]) -> float | None:
    """Return the seconds from the end of training to the export, plus those of the report if known.

    None: there is no export yet.
    """
    try:
        over, exported = (datetime.fromisoformat(timing[name]) for name in (TRAINING_OVER, EXPORTED))
        return (exported - over).total_seconds() + float(timing.get("report_seconds", 0.0))
    except (KeyError, TypeError, ValueError):
        return None


def _note(run: RunDir, what: str, value: str | float) -> None:
    try:
        write_json(run.path / TIMING_FILE, {**read_timing(run), what: value})
    except OSError:
        return
