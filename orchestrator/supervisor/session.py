"""Process of one session of a search, with Ray and the controller; `orchestrator.supervisor.supervisor` starts it.

python -m orchestrator.supervisor.session RUN PARENT AHEAD

PARENT is the id of the process that it must not outlive. AHEAD is the number of seconds by which the search's clock is
ahead of this machine's clock, which may have been set since the search's command began.
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
from orchestrator.state.run_dir import RunDir, open_run_dir
from orchestrator.state.search import Consolidation, Search
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
    """Run the session; return a `SessionExit`, or the exit code that `run_command` has for an error."""
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
    """Run the session's search, and return its exit code; also for a full disk and for a failure of Ray."""
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
    """Return the message for a full disk, with an estimate of the space that is needed to resume."""
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
    """Run the search on its own Ray or on a named cluster, until it is over, interrupted or to be consolidated.

    `ahead` is in seconds, as AHEAD above. `temporary` is the folder for Ray's files; None: one is made, and removed.
    """
    stay_on_loopback()  # before Ray is imported
    from rich.console import Console

    from orchestrator.execution.cluster import placed
    from orchestrator.execution.tune_run import ray_session
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
    """Run the trials of a search whose placement is known; return the controller after the last one."""
    from orchestrator.controller.controller import SearchController
    from orchestrator.execution.tune_run import run_tune
    from orchestrator.monitoring.prometheus import PrometheusExporter
    from orchestrator.preflight.tracking import runs_on_disk
    from orchestrator.storage.run_storage import storage_of

    assert search.placement is not None
    with PrometheusExporter(progress, folder, search, clock) as metrics:
        listener, storage = in_turn(show, metrics), storage_of(folder.path)
        controller = SearchController(folder, search, search.placement.slots, listener, clock, storage=storage)
        run_tune(controller, folder)
    if (note := runs_on_disk(folder)) is not None:
        show(Notice(note))
    return controller


def _code_of(controller: SearchController, folder: RunDir) -> SessionExit:
    """Return how the session ended, and record giving up or consolidation in the run folder.

    Raises `InputError` if the budget was too short for even one evaluation.
    """
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
    if controller.consolidation is not None:
        folder.write_search(_consolidated(search, controller.consolidation))
        return SessionExit.CONSOLIDATED
    return SessionExit.OVER


def _consolidated(search: Search, to: Consolidation) -> Search:
    on_gpu = search.gpus_per_trial > 0
    return replace(search, ranks=to.ranks, gpus_per_trial=to.ranks if on_gpu else 0, regrouped=to, placement=None)


def look_at_cluster(search: Search, folder: RunDir, show: Callable[[Event], None]) -> None:
    """Check the nodes of the joined cluster, and show every check result that is not OK.

    Raises `InputError` if the search cannot run on them. A search that has trials already is not refused, because an
    unfit node may have joined meanwhile.
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
    """Ends this process as soon as a daemon of the Ray that it started is gone.

    Otherwise Ray would block for a minute, report every trial as dead meanwhile, and then end the process itself.
    Create it before Ray is started, enter it once Ray is up, and leave it before Ray is shut down. A joined cluster is
    not watched, because its daemons are no children of this process. A thread of its own watches.
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
            # The run folder is consistent at any moment, and the next session continues from it.
            os._exit(SessionExit.BROKEN)


if __name__ == "__main__":
    sys.exit(main())
