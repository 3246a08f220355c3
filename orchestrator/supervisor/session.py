"""The process of one session of a search: Ray, and the controller that it asks. `supervisor` beside it starts it.

python -m orchestrator.supervisor.session RUN PARENT AHEAD

PARENT is the process that it must not outlive. AHEAD is by how many seconds the search's clock is ahead of this
machine's, whose clock may have been set since the search's command began.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.controller.events import Event, Notice, in_turn
from orchestrator.monitoring.search_log import log_session, search_log
from orchestrator.ray_setup.address import named_cluster
from orchestrator.ray_setup.start import stay_on_loopback
from orchestrator.state.check_result import Severity, raise_if_blocked
from orchestrator.state.regrouped import Consolidation
from orchestrator.state.run_dir import RunDir, Search, open_run_dir
from orchestrator.storage.locations import address_of
from orchestrator.supervisor.give_up import record_giving_up
from orchestrator.supervisor.interruption import obey
from orchestrator.supervisor.session_mark import mark_session
from orchestrator.supervisor.supervisor import SessionExit
from search_spaces.durations import format_duration
from trials.cli import run_command
from trials.console.terminal import drain_console, survives_hangup, write_error
from trials.console.unexpected import keep_traceback
from trials.errors import InputError, SearchBroken, first_line
from trials.system.disk_full import is_disk_full
from trials.system.processes import children, die_with, is_alive

if TYPE_CHECKING:
    from orchestrator.controller.controller import SearchController
    from orchestrator.monitoring.progress import Progress

_RAY_DAEMONS = ("gcs_server", "raylet")
_LOOK_SECONDS = 0.5
_LEAST_ROOM_GIB = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the session; returns a `SessionExit`, or what `run_command` makes of an error."""
    path, parent, ahead = argv or sys.argv[1:]
    die_with(int(parent))
    return run_command(lambda: _session(Path(path), float(ahead)))


def _session(path: Path, ahead: float) -> int:
    obey()
    folder = open_run_dir(path)
    log_session(folder)
    with survives_hangup():
        return _code(folder, ahead)


def _code(folder: RunDir, ahead: float) -> int:
    """What a session that has its log ends with."""
    try:
        return run_session_search(folder, ahead, mark_session(folder))
    except Exception as error:
        if is_disk_full(error):
            keep_traceback(error)
            sys.stderr.write(f"error: {disk_is_full(folder, error)}\n")
            return SessionExit.DISK_FULL
        if not isinstance(error, SearchBroken):
            raise
        keep_traceback(error)
        sys.stderr.write(f"error: {error}\n")
        return SessionExit.BROKEN


def disk_is_full(folder: RunDir, error: Exception) -> str:
    """What to say of a disk that takes no more, with the room that it takes to go on."""
    trials = (folder.path / "trials").iterdir()
    sizes = (sum(file.stat().st_size for file in trial.rglob("*") if file.is_file()) for trial in trials)
    placement = folder.read_search().placement
    slots = placement.slots if placement else 1
    wanted = max(_LEAST_ROOM_GIB, 2 * slots * max(sizes, default=0) / 2**30)
    return (
        f"the disk of {folder.path} takes no more: {first_line(error)}. Nothing is lost: make {wanted:.1f} GiB free, "
        f"then go on by --resume {shlex.quote(address_of(folder))}."
    )


def run_session_search(folder: RunDir, ahead: float = 0.0, temporary: Path | None = None) -> SessionExit:
    """Runs the search until it's over, interrupted or to be regrouped, on its own Ray or on the one that is named.

    `temporary` is for Ray's own files; None: a folder that is made for them, and removed.
    """
    stay_on_loopback()  # before Ray is imported
    from rich.console import Console

    from orchestrator.execution.tune_run import placed, ray_session
    from orchestrator.monitoring.console import live_view
    from orchestrator.monitoring.progress import Progress
    from orchestrator.planning.speed_cache import save_speed
    from orchestrator.preflight.shared_storage import require_shared_storage
    from orchestrator.preflight.tracking import check_tracking
    from orchestrator.state.clock import SteadyClock

    search = folder.read_search()
    clock = SteadyClock(is_time_of_day=search.deadline.is_time_of_day, wall=lambda: time.time() + ahead)
    ray_watch = RayDaemonMonitor()
    progress = Progress(tuple(search.recipe.space))
    with live_view(progress, search.deadline, Console(), search_log(folder).append) as show:
        show(Notice(f"run folder {address_of(folder)}"))
        check_tracking(search, lambda finding: show(Notice(str(finding))))
        wants_dashboard = search.recipe.search.dashboard or search.ranks > 1
        with ray_session(dashboard=wants_dashboard, folder=temporary) as dashboard, ray_watch:
            if dashboard:
                show(Notice(f"Ray dashboard {dashboard}"))
            if named_cluster() is not None:
                require_shared_storage(address_of(folder))
                look_at_cluster(search, folder, show)
            search = placed(search)
            folder.write_search(search)
            controller = _conducted(folder, search, progress, show, clock)
            save_speed(controller.search, controller.throughput)
    return _code_of(controller, folder)


def _conducted(
    folder: RunDir, search: Search, progress: Progress, show: Callable[[Event], None], clock: Callable[[], datetime]
) -> SearchController:
    """Runs the trials of a search that has its place; gives the controller, which has nothing to run any more."""
    from orchestrator.controller.remote import controller_of
    from orchestrator.execution.tune_run import run_tune
    from orchestrator.monitoring.prometheus import PrometheusExporter
    from orchestrator.preflight.tracking import runs_on_disk

    assert search.placement is not None
    with PrometheusExporter(progress, folder, search, clock) as metrics:
        controller = controller_of(folder, search, search.placement.slots, in_turn(show, metrics), now=clock)
        run_tune(controller, folder)
    if (note := runs_on_disk(folder)) is not None:
        show(Notice(note))
    return controller


def _code_of(controller: SearchController, folder: RunDir) -> SessionExit:
    """How the session ended. Raises `InputError` if not even one evaluation came about."""
    search = controller.search
    if controller.gave_up is not None and not controller.was_interrupted:
        record_giving_up(folder, controller.gave_up)
        return SessionExit.GAVE_UP
    if not folder.records() and not controller.was_interrupted:
        raise InputError(
            f"the budget is too short for one evaluation: when Ray had started, nothing was left of it but "
            f"{format_duration(search.deadline.reserve_seconds)} for the export. Give a longer --budget with --resume "
            f"{shlex.quote(address_of(folder))}, or set a smaller search.reserve."
        )
    if controller.was_interrupted:
        return SessionExit.INTERRUPTED
    if controller.regrouped is not None:
        folder.write_search(_regrouped(search, controller.regrouped))
        return SessionExit.CONSOLIDATED
    return SessionExit.OVER


def _regrouped(search: Search, to: Consolidation) -> Search:
    on_gpu = search.gpus_per_trial > 0
    return replace(search, ranks=to.ranks, gpus_per_trial=to.ranks if on_gpu else 0, regrouped=to, placement=None)


def look_at_cluster(search: Search, folder: RunDir, show: Callable[[Event], None]) -> None:
    """Says what is wrong with the nodes of the cluster that was joined.

    Raises `InputError` if the search can't run on them; not if it did already: a search isn't given up for a node that
    has joined meanwhile.
    """
    from orchestrator.preflight.checks import least_gib
    from orchestrator.preflight.cluster import cluster_checks

    found = cluster_checks(search, least_gib(search))
    if not folder.records():
        raise_if_blocked(found)
    for finding in found:
        if finding.level is not Severity.OK:
            show(Notice(str(finding)))


class RayDaemonMonitor:
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
            write_error("error: a process of Ray has ended\n")
            drain_console()
            # What's on disk is whole at any moment, and the next session goes on from there.
            os._exit(SessionExit.BROKEN)


if __name__ == "__main__":
    sys.exit(main())
