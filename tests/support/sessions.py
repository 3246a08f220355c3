"""The session that is at work in a run folder, as its `session.json` says: while Ray is restarted there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until

RESTART_SECONDS = 120.0
"""Seconds that a busy machine may take from the end of one session to the next one's `session.json`."""


def session_mark(run: Path) -> dict[str, Any] | None:
    """The content of `session.json`; None while there is none that is whole."""
    try:
        mark = json.loads((run / "session.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and "session" in mark else None


def await_session(run: Path) -> dict[str, Any]:
    """The content of `session.json`, once there is one."""
    assert wait_until(lambda: session_mark(run) is not None, RESTART_SECONDS), f"no session is at work in {run}"
    mark = session_mark(run)
    assert mark is not None
    return mark
