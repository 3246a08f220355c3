"""A search with very many GPUs and trials: the controller's time for a decision, and its memory."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from benchmarks.simulator.simulator import Machine, SimulatedSearch
from benchmarks.simulator.synthetic_curves import ModelledCurves
from orchestrator.state.deadline import Deadline
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from search_spaces.loader import load_recipe

_BUDGET = 9 * 3600.0
_RESERVE = 300.0
_STARTED = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)
_SHARE = 0.3
"""Share of a full trial that a mean trial trains; from it follows the full length at which `trials` fill the search."""
_IN_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Crowd:
    """Result of one search; times in milliseconds, each of one call of the controller."""

    slots: int
    trials: int
    decisions: int
    mean: float
    median: float
    percentile_99: float
    longest: float
    between: float
    """Mean time of `on_idle`, after an event."""
    between_99: float
    """The 99th percentile of that."""
    memory_mib: float
    """Peak memory of the whole process, simulation included."""
    wall_seconds: float

    def in_words(self) -> str:
        """Return the result in one line."""
        return (
            f"{self.slots:5d} GPUs, {self.trials:6d} trials: {self.decisions} decisions, mean {self.mean:.2f} ms, "
            f"median {self.median:.2f}, 99th percentile {self.percentile_99:.2f}, longest {self.longest:.0f}; "
            f"between them mean {self.between:.2f}, 99th percentile {self.between_99:.1f}; "
            f"{self.memory_mib:.0f} MiB, {self.wall_seconds:.0f} s"
        )


def play_crowded(slots: int, trials: int, seed: int) -> Crowd:
    """Play a nine-hour search with `slots` GPUs, a trial on each, that ends with about `trials` trials."""
    began = time.perf_counter()
    settings = ["search.full_trials=null", f"search.trials={trials}", f"search.reserve={_RESERVE:g}s"]
    recipe = load_recipe("demo", settings, environ={}).recipe
    deadline = Deadline(_STARTED, _STARTED + timedelta(seconds=_BUDGET), _RESERVE)
    rows = {"train": {"rows": 900, "tokens": 100_000}}
    search = Search(recipe, {}, deadline, 0, 100_000, rows, placement=Placement(slots, slots))
    machine = Machine(full_trial=_BUDGET * slots / trials / _SHARE, base=20.0, start=1.0)
    folder = Path(tempfile.mkdtemp(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
    try:
        (folder / "trials").mkdir()
        run = RunDir(folder)
        run.write_search(search)
        account = SimulatedSearch(run, ModelledCurves(seed), machine, slots, timer=time.perf_counter).play()
    finally:
        shutil.rmtree(folder)
    taken, between = np.array(account.decisions) * 1e3, np.array(account.idle) * 1e3
    return Crowd(
        slots=slots,
        trials=account.trials,
        decisions=len(taken),
        mean=float(taken.mean()),
        median=float(np.median(taken)),
        percentile_99=float(np.quantile(taken, 0.99)),
        longest=float(taken.max()),
        between=float(between.mean()),
        between_99=float(np.quantile(between, 0.99)),
        memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        wall_seconds=time.perf_counter() - began,
    )
