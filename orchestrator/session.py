"""The process of one session of a search: Ray, and the conductor that it asks. `orchestrator.perseverance` starts it.

python -m orchestrator.session RUN PARENT AHEAD

PARENT is the process that it must not outlive. AHEAD is by how many seconds the search's clock is ahead of this
machine's, whose clock may have been set since the search's command began.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.perseverance import SessionCode, mark_session
from orchestrator.processes import children, die_with, is_alive
from orchestrator.run_folder import RunFolder, open_run_folder
from search_spaces.durations import format_duration
from trials.command_line import run
from trials.disk import is_disk_full
from trials.errors import InputError, SearchBroken, first_line

_RAY_DAEMONS = ("gcs_server", "raylet")
_LOOK_SECONDS = 0.5
_LEAST_ROOM_GIB = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the session; returns a `SessionCode`, or what `run` makes of an error."""
    path, parent, ahead = argv or sys.argv[1:]
    die_with(int(parent))
    return run(lambda: _session(Path(path), float(ahead)))


def _session(path: Path, ahead: float) -> int:
    folder = open_run_folder(path)
    try:
        mark_session(folder)
        was_interrupted = conduct(folder, ahead)
    except Exception as error:
        if is_disk_full(error):
            sys.stderr.write(f"error: {disk_is_full(folder, error)}\n")
            return SessionCode.DISK_FULL
        if not isinstance(error, SearchBroken):
            raise
        sys.stderr.write(f"error: {error}\n")
        return SessionCode.BROKEN
    return SessionCode.INTERRUPTED if was_interrupted else SessionCode.OVER


def disk_is_full(folder: RunFolder, error: Exception) -> str:
    """What to say of a disk that takes no more, with the room that it takes to go on."""
    trials = (folder.path / "trials").iterdir()
    sizes = (sum(file.stat().st_size for file in trial.rglob("*") if file.is_file()) for trial in trials)
    placement = folder.read_search().placement
    slots = placement.slots if placement else 1
    wanted = max(_LEAST_ROOM_GIB, 2 * slots * max(sizes, default=0) / 2**30)
    return (
        f"the disk of {folder.path} takes no more: {first_line(error)}. Nothing is lost: make {wanted:.1f} GiB free, "
        f"then go on by --resume {shlex.quote(str(folder.path))}."
    )


def conduct(folder: RunFolder, ahead: float = 0.0) -> bool:
    """Runs the search on a Ray of its own until it's over; True if a person interrupted it."""
    from rich.console import Console

    from orchestrator.board import Board
    from orchestrator.clock import SteadyClock
    from orchestrator.conductor import Conductor
    from orchestrator.console import watch
    from orchestrator.events import Message
    from orchestrator.speed import remember_speed
    from orchestrator.tuner import placement, ray_session, run_tune

    search = folder.read_search()
    clock = SteadyClock(is_time_of_day=search.deadline.is_time_of_day, wall=lambda: time.time() + ahead)
    ray_watch = RayWatch()
    with watch(Board(tuple(search.recipe.space)), search.deadline, Console()) as listener:
        listener(Message(f"run folder {folder.path}"))
        with ray_session(dashboard=search.recipe.search.dashboard) as dashboard, ray_watch:
            if dashboard:
                listener(Message(f"Ray dashboard {dashboard}"))
            search = replace(search, placement=placement(search))
            folder.write_search(search)
            assert search.placement is not None
            conductor = Conductor(folder, search, search.placement.slots, listener, now=clock)
            run_tune(conductor, folder)
            remember_speed(conductor.search, conductor.pace)
    if not folder.records() and not conductor.was_interrupted:
        raise InputError(
            f"the budget is too short for one evaluation: when Ray had started, nothing was left of it but "
            f"{format_duration(search.deadline.reserve_seconds)} for the export. Give a longer --budget with --resume "
            f"{shlex.quote(str(folder.path))}, or set a smaller search.reserve."
        )
    return conductor.was_interrupted


class RayWatch:
    """Ends this process as soon as a daemon of the Ray that it starts is gone, whatever it's doing then.

    Ray would let it wait for a minute, call every trial dead meanwhile, and end the process itself. To be made before
    Ray is started, entered once it's up, and left before it's shut down. Where a cluster is joined there is nothing to
    watch: its daemons are nobody's children here.
    """

    def __init__(self) -> None:
        self._is_up, self._is_over = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> None:
        self._is_up.set()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def _watch(self) -> None:
        daemons: set[int] = set()
        is_complete = False
        while all(is_alive(daemon) for daemon in daemons):
            if not is_complete:
                is_complete = self._is_up.is_set()
                daemons |= children(_RAY_DAEMONS)
            if self._is_over.wait(_LOOK_SECONDS) or (is_complete and not daemons):
                return
        if not self._is_over.is_set():
            sys.stderr.write("error: a process of Ray has ended\n")
            # What's on disk is whole at any moment, and the next session goes on from there.
            os._exit(SessionCode.BROKEN)


if __name__ == "__main__":
    sys.exit(main())
