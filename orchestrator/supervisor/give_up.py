"""Passes the reason for giving up from a session to the search's command, in RUN/gave_up.json."""

from __future__ import annotations

import shlex
from datetime import datetime

from orchestrator.state.run_dir import RunDir
from orchestrator.storage.locations import address_of
from search_spaces.durations import format_duration
from trials.system.files import write_json

_FILE = "gave_up.json"


def record_giving_up(folder: RunDir, reason: str) -> None:
    """Write the reason to the run folder."""
    write_json(folder.path / _FILE, {"reason": reason})


def giving_up(folder: RunDir, now: datetime) -> str:
    """Return the message on giving up: the reason, the time that was left at `now`, and how to resume."""
    found = folder.read_json(_FILE) or {}
    left = max(0.0, folder.read_search().deadline.training_seconds_left(now))
    return (
        f"the search gave up {format_duration(left)} before its training ends: {found.get('reason', 'see above')}. "
        "What there was is exported, if anything was worth it (above). Once the cause is mended, go on: "
        f"python -m orchestrator.search --resume {shlex.quote(address_of(folder))}"
    )
