"""Searches of random length and speed, with processes that die and a person who resumes the search."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.simulator.simulator import Accident, Machine, SimulatedSearch
from benchmarks.simulator.synthetic_curves import ModelledCurves
from orchestrator.planning.export_reserve import expected_seconds
from orchestrator.state.deadline import Deadline, first_reserve
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from search_spaces.loader import load_recipe
from trials.records.trial_dir import Origin
from trials.state import TrialState

_STARTED = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)
_SHORTEST, _LONGEST = 20 * 60.0, 12 * 3600.0
_TOKENS, _ROWS = 2_000_000, 8_000
_SLOWEST = 1.2
"""Seconds of the landscape's slowest trials, relative to the mean one's."""
_IN_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Outcome:
    """Result of one search."""

    seed: int
    seconds: float
    """From the command's start to the deadline."""
    ended: float
    """Time at which the export existed, in seconds since the start."""
    full_length: int
    """Trials that were trained to their end."""
    one_fits: bool
    """Whether a full trial, of the length it had in that search, fitted beside the time that accidents cost."""
    busy: float
    """Share of the slots' time that was trained in, between the first trial's start and the reserve, while Ray ran."""
    trials: int
    accidents: int
    shortened: float
    wall_seconds: float
    """Seconds that the simulation took."""

    @property
    def met(self) -> bool:
        """Whether the export existed in time."""
        return self.ended <= self.seconds


def play(seed: int) -> Outcome:
    """Play one search, drawn from its seed."""
    began = time.perf_counter()
    lot = random.Random(seed)
    seconds = math.exp(lot.uniform(math.log(_SHORTEST), math.log(_LONGEST)))
    engines, beside = lot.choice([1, 1, 1, 2, 4]), lot.choice([1, 1, 2])
    machine = Machine(
        full_trial=seconds * math.exp(lot.uniform(math.log(0.02), math.log(1.5))),
        base=lot.uniform(10, 60),
        start=lot.uniform(0.2, 1.0),
        slots_per_worker=beside,
        restart=lot.uniform(20, 120),
    )
    # Nothing can be exported if the driver dies so late that it comes back after the end.
    last = seconds - first_reserve(seconds) - 2 * machine.restart
    accidents = _accidents(lot, last, engines * beside)
    folder = Path(tempfile.mkdtemp(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
    try:
        return _played(seed, seconds, Placement(engines, engines * beside), machine, accidents, folder, began)
    finally:
        shutil.rmtree(folder)


def _accidents(lot: random.Random, last: float, slots: int) -> list[Accident]:
    """Draw about one accident of each kind in two hours, so at most a few in a short search."""
    found = []
    for kind in ("trial", "engine", "driver"):
        at = lot.expovariate(1 / 7200)
        while at < last:
            found.append(Accident(at, kind, lot.randrange(slots)))
            at += lot.expovariate(1 / 7200)
    return found


def _played(
    seed: int,
    seconds: float,
    placement: Placement,
    machine: Machine,
    accidents: list[Accident],
    folder: Path,
    began: float,
) -> Outcome:
    recipe = load_recipe(
        "demo", [f"search.seed={seed}", "search.trials=null", "search.reserve=null"], environ={}
    ).recipe
    deadline = Deadline(_STARTED, _STARTED + timedelta(seconds=seconds), first_reserve(seconds))
    data = {
        name: {"rows": rows, "tokens": rows * 250, "longest": 500, "completion_tokens": rows * 100}
        for name, rows in (("train", _ROWS), ("eval", 200), ("test", 200))
    }
    search = Search(recipe, {}, deadline, 1, _TOKENS, data, placement=placement)
    (folder / "trials").mkdir()
    run = RunDir(folder)
    run.write_search(search)
    landscape = ModelledCurves(seed)
    simulated = SimulatedSearch(run, landscape, machine, placement.slots, accidents)
    account = simulated.play()
    final = simulated.controller.search
    training_ends = (final.deadline.training_ends - _STARTED).total_seconds()
    records = [record for record in run.records() if record.origin is not Origin.BASE]
    first = account.first_start if account.first_start is not None else training_ends
    full = machine.full_trial * (final.shortened or 1.0)
    open_seconds = placement.slots * max(1e-9, training_ends - first - account.down_seconds)
    return Outcome(
        seed=seed,
        seconds=seconds,
        # Expected times of a search's end are measured on real searches; here it takes 0.7 to 1.2 times as long.
        ended=simulated.seconds
        + expected_seconds(final.deadline.reserve_seconds) * random.Random(seed + 1).uniform(0.7, 1.2),
        full_length=sum(record.state is TrialState.FINISHED for record in records),
        one_fits=first + _SLOWEST * full * (1 + account.lost_fraction) + account.down_seconds <= training_ends,
        busy=account.busy_seconds / open_seconds,
        trials=len(records),
        accidents=len(accidents),
        shortened=final.shortened or 1.0,
        wall_seconds=time.perf_counter() - began,
    )
