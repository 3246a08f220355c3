"""What the end of a search really took, beside what was kept for it: RUN/timing.json.

training_over    when nothing was trained any more (UTC)
exported         when the verified export was there (UTC)
export_seconds   with its proof in a fresh process
report_seconds   of the report that the search writes by itself
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
    """Notes when something happened: TRAINING_OVER, EXPORTED. A folder that can't be written to is no error here."""
    _note(run, what, (now or datetime.now(UTC)).isoformat(timespec="milliseconds"))


@contextmanager
def timed(run: RunDir, part: str) -> Iterator[None]:
    """Notes how many seconds a part of the end takes (`export`, `report`), if it succeeds."""
    began = time.monotonic()
    yield
    _note(run, f"{part}_seconds", round(time.monotonic() - began, 3))


def read_timing(run: RunDir) -> Mapping[str, Any]:
    """What is known of it; empty before the end, and in run folders from before it was noted."""
    try:
        found = run.read_json(TIMING_FILE)
    except RunFolderError:
        return {}
    return found if isinstance(found, dict) else {}


def end_seconds(timing: Mapping[str, Any]) -> float | None:
    """From the end of training to the export, with the report where that's written; None before there's an export."""
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
