"""Searches of the benchmark: a task, a searcher, a seed; the loss of the adapter that would be exported.

A searcher is a sampler and a scheduler of the product, such as `tpe/asha`, or one of Ray Tune's (`ray/asha`). All have
the same time for training. A search is imperfect as real ones are: evaluations are noisy, a trial's last optimizer step
ends short of its tokens, the speed probe is wrong by two for two seeds of three, and for every other seed the
controller dies twice and is resumed.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from benchmarks.simulator.annealing import FULL_TOKENS, TASKS, Annealing, Lengths
from benchmarks.simulator.landscapes import Reference, Task
from benchmarks.simulator.lcbench import CHOSEN_BY, LCBench, judged_by
from benchmarks.simulator.simulator import STEPS, Accident, Machine, SimulatedSearch
from benchmarks.simulator.stock_searchers import Stock, StockReplay
from benchmarks.simulator.tables import demo_table, peft_table
from orchestrator.controller.controller import SearchController
from orchestrator.state.deadline import Deadline
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from orchestrator.state.selection import rank
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe, SearchSettings
from trials.errors import InputError

Group = Literal["lcbench", "lcbench-judge", "annealing-mild", "annealing-strong", "lengths", "peft", "demo"]
GROUPS: tuple[Group, ...] = get_args(Group)
DEFAULT_PAIR = "freeze_thaw/freeze_thaw"
"""The only pair of a version whose recipes have no `search.sampler` yet."""
FULL_SECONDS = 600.0
"""Seconds of a full trial."""
_MACHINE = Machine(full_trial=FULL_SECONDS, base=20.0, start=1.0, restart=1.0, short=0.01)
_PROBE_SPEEDS = (1.0, 2.0, 0.5)
"""Errors of the speed probe; a seed's is at its remainder by three."""
_RESERVE = 30.0
_STARTED = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)
_IN_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Setting:
    """Conditions that all searchers of a comparison share."""

    budget: float
    """Full trials' worth of training, on all slots together."""
    slots: int
    curves: Path
    """Folder with LCBench's surrogate and the PEFT table."""
    noise: float = 0.02
    """Standard deviation of an evaluation, as a share of the distance from the lowest to the typical loss."""
    evaluations: int = 9
    """Evaluations of a full trial."""
    patience: int | None = None
    """Evaluations without improvement that end a trial; None: any number."""
    final_share: float = 0.5
    """`search.final_share`, where trials may be longer than the recipe says."""


@dataclass(frozen=True)
class Forecasted:
    """Forecast at the end of a search for a trial that is not complete, and the loss that it would have come to."""

    mean: float
    deviation: float
    final: float

    @property
    def is_outside(self) -> bool:
        """Whether the loss is more than two deviations from the forecast."""
        return abs(self.final - self.mean) > 2 * self.deviation


@dataclass(frozen=True)
class Played:
    """Result of one search. Losses are in nats per token, without noise; times in full trials' worth of training."""

    searcher: str
    task: str
    seed: int
    budget: float
    slots: int
    exported: tuple[tuple[float, float], ...]
    """Pairs (time, loss) of every adapter that an export would have chosen, the base model first."""
    reference: Reference
    trials: int
    full_length: int
    wall_seconds: float
    """Seconds that the simulation took."""
    forecasted: tuple[Forecasted, ...] = ()
    """Of all trials that were evaluated and are not complete; empty for Ray Tune's own searches."""

    @property
    def loss(self) -> float:
        """Loss of the adapter that is exported at the end."""
        return self.exported[-1][1]

    @property
    def regret(self) -> float:
        """Normalised regret of the exported adapter."""
        return self.reference.regret(self.loss)

    def reached(self, loss: float) -> float | None:
        """Return the time from which on an export was as good as `loss`; None: it is worse at the end."""
        since: float | None = None
        for at, exported in self.exported:
            if exported > loss + 1e-12:
                since = None
            elif since is None:
                since = at
        return since


def task_names(group: Group, curves: Path) -> list[str]:
    """Return the names of a group's tasks. Raises `InputError` if the folder of the curves is needed and missing."""
    if group in ("lcbench", "lcbench-judge"):
        return [f"lcbench {number}" for number in (CHOSEN_BY if group == "lcbench" else judged_by(curves))]
    if group in ("annealing-mild", "annealing-strong", "lengths"):
        return [f"{group} {number}" for number in range(TASKS)]
    return [group]


@cache
def load_task(name: str, curves: Path, seed: int = 0) -> Task:
    """Return the task of a name of `task_names`; `seed` chooses between recordings of the same configuration."""
    group, _, number = name.partition(" ")
    if group == "lcbench":
        return LCBench(number, curves)
    if group in ("annealing-mild", "annealing-strong"):
        return Annealing("mild" if group == "annealing-mild" else "strong", int(number))
    if group == "lengths":
        return Lengths(int(number))
    return peft_table(curves) if group == "peft" else demo_table(seed)


def recipe_for(searcher: str, task: Task, seed: int, setting: Setting) -> Recipe:
    """Return the recipe of a search: the demo's, with the task's space and starting point and the searcher's pair.

    Raises `InputError` if this version has no such sampler or scheduler.
    """
    requests = [f"search.seed={seed}", "search.trials=null", "search.full_trials=null", f"search.reserve={_RESERVE:g}s"]
    requests += [f"evaluation.evaluations={setting.evaluations}", *_pair_requests(searcher)]
    requests += [] if setting.patience is None else [f"evaluation.patience={setting.patience}"]
    if isinstance(task, Lengths):
        lengths = [f"train_tokens={FULL_TOKENS}", "rows_seen=null", "epochs=null"]
        requests += [*lengths, "search.full_trials=6", f"search.final_share={setting.final_share}"]
    else:
        requests += ["search.final_share=0"]  # curves of one length
    recipe = load_recipe("demo", requests, environ={}).recipe
    return Recipe.model_validate({**recipe.model_dump(), "space": task.space, "start": {"usual": task.start}})


def _pair_requests(searcher: str) -> list[str]:
    if searcher in set(Stock):
        return []
    sampler, _, scheduler = searcher.rpartition("/")
    if {"sampler", "scheduler"} <= SearchSettings.model_fields.keys():
        return [f"search.sampler={sampler}", f"search.scheduler={scheduler}"]
    if searcher == DEFAULT_PAIR:
        return []
    stock = ", ".join(Stock)
    raise InputError(f"unknown searcher {searcher!r}: recipes have no search.sampler. Give {DEFAULT_PAIR} or {stock}.")


def search_seed(name: str, seed: int) -> int:
    """Return the recipe's seed of a search. It is unrelated to that of the next seed, and of the same seed elsewhere.

    The product adds a trial's number to the search's seed, so searches with seeds 1 and 2 propose the same. And with
    one seed for all tasks of a space, a fortunate first configuration would be so on all of them.
    """
    return random.Random(f"{name} {seed}").randrange(2**31)


def play(searcher: str, name: str, seed: int, setting: Setting) -> Played:
    """Play one search."""
    task = load_task(name, setting.curves, seed if name == "demo" else 0)
    reference = task.reference
    machine = _machine(reference, seed, setting)
    recipe = recipe_for(searcher, task, search_seed(name, seed), setting)
    began = time.perf_counter()
    if searcher in set(Stock):
        found, trials, full, forecasted = _play_stock(Stock(searcher), task, recipe, machine, setting)
    else:
        found, trials, full, forecasted = _play_pair(task, recipe, machine, setting, seed)
    return Played(
        searcher=searcher,
        task=name,
        seed=seed,
        budget=setting.budget,
        slots=setting.slots,
        exported=((0.0, task.base_loss), *((at * setting.slots / FULL_SECONDS, loss) for at, loss in found)),
        reference=reference,
        trials=trials,
        full_length=full,
        wall_seconds=time.perf_counter() - began,
        forecasted=forecasted,
    )


def _machine(reference: Reference, seed: int, setting: Setting) -> Machine:
    return replace(
        _MACHINE,
        noise=setting.noise * (reference.typical - reference.lowest),
        probe_speed=_PROBE_SPEEDS[seed % len(_PROBE_SPEEDS)],
        patience=setting.patience is not None,
    )


_Found = tuple[Sequence[tuple[float, float]], int, int, tuple[Forecasted, ...]]


def _play_stock(kind: Stock, task: Task, recipe: Recipe, machine: Machine, setting: Setting) -> _Found:
    replay = StockReplay(kind, recipe, task, machine)
    account = replay.play(setting.slots, setting.budget * FULL_SECONDS / setting.slots)
    return account.exported, account.trials, account.full_length, ()


def _play_pair(task: Task, recipe: Recipe, machine: Machine, setting: Setting, seed: int) -> _Found:
    before = machine.base + machine.start + FULL_SECONDS / 50 / machine.probe_speed  # base model and speed probe
    training = setting.budget * FULL_SECONDS / setting.slots
    deadline = Deadline(_STARTED, _STARTED + timedelta(seconds=before + training + _RESERVE), _RESERVE)
    rows = {"train": {"rows": 900, "tokens": FULL_TOKENS}}
    placement = Placement(setting.slots, setting.slots)
    search = Search(recipe, {}, deadline, 0, FULL_TOKENS, rows, placement=placement)
    folder = Path(tempfile.mkdtemp(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
    try:
        (folder / "trials").mkdir()
        run = RunDir(folder)
        run.write_search(search)
        accidents = restarts(seed, before, training)
        simulated = SimulatedSearch(run, task, machine, setting.slots, accidents)
        account = simulated.play()
        assert account.first_start is not None  # there is time for a trial in every budget
        exported = [*account.exported, (simulated.seconds, _exported_loss(run, task))]
        found = [(at - account.first_start, loss) for at, loss in exported]
        return found, account.trials, account.full_length, tuple(_forecasted(simulated.controller, run, task))
    finally:
        shutil.rmtree(folder)


def restarts(seed: int, before: float, training: float) -> list[Accident]:
    """Return the controller's deaths: two for every other seed, at random times."""
    lot = random.Random(f"restarts {seed}")
    times = sorted(before + training * lot.uniform(0.05, 0.95) for _ in range(2 * (seed % 2)))
    return [Accident(at, "driver") for at in times]


def _forecasted(controller: SearchController, run: RunDir, task: Task) -> Iterator[Forecasted]:
    for record in run.records():
        is_complete = record.ending is not None and record.ending.kind.is_complete
        forecast = None if is_complete else controller.forecast(record.id)
        if forecast is not None:
            final = task.curve(record.id, record.config.hyperparameters).loss(1.0)
            yield Forecasted(forecast.mean, forecast.deviation, final)


def _exported_loss(run: RunDir, task: Task) -> float:
    """Return the loss without noise of the evaluation whose adapter the product would export."""
    best = next(iter(rank(run.records())), None)
    point = None if best is None else best.best_point
    if best is None or point is None:
        return task.base_loss
    return task.curve(best.id, best.config.hyperparameters).loss(point.step / STEPS)
