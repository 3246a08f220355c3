"""Cost of the search itself on a cluster: many short trials on nodes that are all on this machine.

python -m benchmarks.system.many_nodes [--nodes 20] [--trials 300] [--seconds 4] [--out DIR]

Real are Ray (a raylet per node), Ray Tune, controller, scheduler, study, trial proxies, the worker pool, an engine's
process per node, the run folder, the preflight and the metrics. Not real: GPUs, which the nodes have in name only, and
the work of trials. They sleep along made-up curves (benchmarks.system.sleeping_engine), evaluated twice. A node takes
about 300 MiB of memory, its trials' processes as much again.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.system.sleeping_engine import SEGMENTS, SleepingEngine
from orchestrator.controller.events import Event, TrialStarted, in_turn
from orchestrator.monitoring.progress import Progress
from orchestrator.state.check_result import CheckResult
from orchestrator.state.clock import SteadyClock
from orchestrator.state.deadline import Deadline
from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir, create_run_dir
from orchestrator.state.search import Search
from search_spaces.loader import load_recipe
from trials.system.files import read_json_lines

_MIB = 2**20
_OBJECT_STORE_BYTES = 80 * _MIB


@dataclass
class Memory:
    """Memory of this process, the search's driver, in MiB."""

    at_start: float = 0.0
    at_end: float = 0.0

    def note_start(self, event: Event) -> None:
        """Record the memory at the first trial after the base model."""
        if isinstance(event, TrialStarted) and event.trial_id != BASE_TRIAL_ID and not self.at_start:
            self.at_start = driver_mib()


def driver_mib() -> float:
    """Return the resident memory of this process, in MiB."""
    return float(psutil.Process().memory_info().rss) / _MIB


def available_gib() -> float:
    """Return the GiB of this machine's memory that are free, or could be at once."""
    return float(psutil.virtual_memory().available) / 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its figures and return the exit code."""
    arguments = _parser().parse_args(argv)
    out = arguments.out or Path(tempfile.mkdtemp(prefix="cluster-"))
    run = create_run_dir(out)
    available = available_gib()
    with _cluster(arguments.nodes):
        began = time.monotonic()
        search, found, looked_seconds = _prepared(run, arguments)
        memory = Memory()
        _search(run, search, memory)
        seconds = time.monotonic() - began - looked_seconds
        memory.at_end = driver_mib()
        used = available - available_gib()
    for line in figures(run, arguments.nodes, seconds, memory):
        print(line)
    print(f"memory of this machine taken by all of it: {used:.1f} GiB")
    print(f"looking at {arguments.nodes} nodes before the search: {looked_seconds:.1f} s; {_in_words(found)}")
    return 0


def figures(run: RunDir, slots: int, seconds: float, memory: Memory) -> list[str]:
    """Return the figures of the run folder and the clock, in lines."""
    records = run.records()[1:]
    costs, segments = overheads(run)
    ends = sorted(costs.values())
    p90 = ends[int(0.9 * len(ends))]
    kinds = sorted({record.ending.kind.value if record.ending else "open" for record in records})
    slept = sum(line["slept"] for line in segments)
    return [
        f"{len(records)} trials ({', '.join(kinds)}) in {len(segments)} segments on {slots} slots: {seconds:.0f} s",
        f"slot-seconds not training, per trial: median {statistics.median(ends):.2f}, 90 % below {p90:.2f}",
        f"share of slots' time that trials trained in: {slept / (slots * seconds):.0%}".replace("%", " %"),
        f"driver memory: {memory.at_start:.0f} MiB at the first trial, {memory.at_end:.0f} MiB at the end",
    ]


def overheads(run: RunDir) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return by trial the seconds that its slot was taken but not training, and all segments.

    They count from when the slot was free before until it was free again. The first segment of a slot is left out:
    nothing says since when the slot was free.
    """
    costs: dict[str, float] = defaultdict(float)
    segments = []
    for file in (run.path / SEGMENTS).glob("*.jsonl"):
        lines = [line for line in read_json_lines(file) if line["trial"] != BASE_TRIAL_ID]
        segments += lines
        for before, line in pairwise(lines):
            costs[line["trial"]] += line["ended"] - before["ended"] - line["slept"]
    return dict(costs), segments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.system.many_nodes", description="A search on many nodes."
    )
    parser.add_argument("--nodes", type=int, default=20, help="with one GPU each, in name only")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=4.0, help="of training in each trial")
    parser.add_argument("--out", type=Path, help="run folder (default: a new one for temporary files)")
    return parser


@contextmanager
def _cluster(nodes: int) -> Iterator[None]:
    from ray.cluster_utils import Cluster

    from orchestrator.execution.tune_run import ray_session

    options = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": _OBJECT_STORE_BYTES}
    # Also without a dashboard Ray wants a port for it, and another Ray on this machine may have the usual one.
    head = {**options, "include_dashboard": False, "dashboard_port": _free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(wait=False, **options)
        cluster.wait_for_nodes(timeout=300)
        os.environ["RAY_ADDRESS"] = cluster.address
        with ray_session(dashboard=False):
            yield
    finally:
        cluster.shutdown()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _prepared(run: RunDir, arguments: argparse.Namespace) -> tuple[Search, list[CheckResult], float]:
    """Return the search with its placement, the preflight's results, and the seconds that the preflight took."""
    from orchestrator.execution.cluster import placed
    from orchestrator.preflight.cluster import cluster_checks

    settings = [
        f"train_tokens={round(arguments.seconds * 1000)}",
        f"search.trials={arguments.trials}",
        f"search.concurrent_trials={arguments.nodes}",
        "search.reserve=60s",
        "evaluations=2",
        "space.learning_rate.high=1e-3",
    ]
    recipe = load_recipe("demo", settings, environ={}).recipe
    now = datetime.now(UTC)
    deadline = Deadline(now, now + timedelta(hours=1), 60.0)
    tokens = recipe.hyperparameters.train_tokens or 0
    # No calibration: the speed of sleeping trials is known.
    search = Search(recipe, {}, deadline, 1, tokens, shortened=1.0)
    began = time.monotonic()
    found = cluster_checks(search, None)
    seconds = time.monotonic() - began
    search = placed(search)
    run.write_search(search)
    return search, found, seconds


def _search(run: RunDir, search: Search, memory: Memory) -> None:
    from orchestrator.controller.controller import SearchController
    from orchestrator.execution import tune_run as tuner
    from orchestrator.execution import worker_pool
    from orchestrator.monitoring.prometheus import PrometheusExporter

    worker_pool.TrialWorker = SleepingEngine  # type: ignore[attr-defined]
    progress, clock = Progress(tuple(search.recipe.space)), SteadyClock()
    assert search.placement is not None
    with PrometheusExporter(progress, run, search, clock) as metrics:
        listener: Callable[[Event], None] = in_turn(progress.apply, metrics, memory.note_start)
        controller = SearchController(run, search, search.placement.slots, listener, now=clock)
        tuner.run_tune(controller, run)


def _in_words(found: Sequence[CheckResult]) -> str:
    levels = [finding.level.value for finding in found]
    return ", ".join(f"{levels.count(level)} {level}" for level in sorted(set(levels)))


if __name__ == "__main__":
    sys.exit(main())
