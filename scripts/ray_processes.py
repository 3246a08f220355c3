"""What runs of a Ray cluster on this machine: its processes by id, and their end.

python -m scripts.ray_processes [--end]      prints one a line; --end: kills them first, and prints those still there

Ray's daemons and workers, and searches, of the user who asks; Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.processes import processes

_OURS = re.compile(r"/ray/core/src/ray/|/site-packages/ray/|^ray::|^ray-dashboard| -m (ray|orchestrator)\.")
_END_SECONDS = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if something is still there."""
    arguments = argparse.ArgumentParser(prog="python -m scripts.ray_processes", description="Ray's processes here.")
    arguments.add_argument("--end", action="store_true", help="kill them")
    left = end_all() if arguments.parse_args(argv).end else running()
    for pid, command in left.items():
        print(pid, command[:100])
    return int(bool(left))


def running() -> Mapping[int, str]:
    """Command lines by process id."""
    found = {process.pid: _command(process.pid) for process in processes() if process.pid != os.getpid()}
    return {pid: command for pid, command in found.items() if _OURS.search(command)}


def end_all(seconds: float = _END_SECONDS) -> Mapping[int, str]:
    """Kills them, and what they start meanwhile; returns those that are still there after so many seconds."""
    ends = time.monotonic() + seconds
    while (left := running()) and time.monotonic() < ends:
        for pid in left:
            _kill(pid)
        time.sleep(0.1)
    return left


def _command(pid: int) -> str:
    """Empty for other people's processes, and for those that have ended."""
    path = Path(f"/proc/{pid}/cmdline")
    try:
        return (
            path.read_text(errors="replace", encoding="utf-8").replace("\0", " ").strip()
            if path.stat().st_uid == os.getuid()
            else ""
        )
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main())
