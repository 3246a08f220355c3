"""The benchmark's comparison of searchers: plays all searches, prints a line for each searcher.

Standard errors are over tasks where a group has several: the means of a task over its seeds are the independent values.
A group with one task has them over seeds. Differences are paired by task and seed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.simulator.landscapes import CURVES
from benchmarks.simulator.regret import (
    DEFAULT_PAIR,
    GROUPS,
    Played,
    Setting,
    load_task,
    play,
    recipe_for,
    task_names,
)
from benchmarks.simulator.stock_searchers import Stock
from trials.errors import InputError

STOCK = ("tpe/asha", Stock.ASHA.value)
"""What users call stock: the first of these that is played."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; None: it takes at least two tasks or seeds."""

    mean: float
    error: float | None

    def __str__(self) -> str:
        """Return both, to three digits."""
        return f"{self.mean:.3f} +- " + ("?" if self.error is None else f"{self.error:.3f}")


def add_options(arguments: argparse.ArgumentParser) -> None:
    """Add the options of the command `regret`."""
    group = arguments.add_argument_group("regret")
    group.add_argument("--tasks", choices=GROUPS, default="lcbench")
    group.add_argument("--searchers", default=f"{DEFAULT_PAIR},{Stock.ASHA}", help="sampler/scheduler, comma-separated")
    group.add_argument(
        "--budgets", type=numbers, default=[6, 12, 24, 50], help="in full trials' worth of training, on all slots"
    )
    group.add_argument("--seeds", type=int, default=5, help="of each task")
    group.add_argument(
        "--noise", type=float, default=0.02, help="of evaluations, as a share of a typical trial's regret"
    )
    group.add_argument("--evaluations", type=int, default=9, help="of a full trial")
    group.add_argument("--patience", type=int, help="evaluations without improvement that end a trial; default: any")
    group.add_argument("--curves", type=Path, default=CURVES, help="folder of the learning curves")


def numbers(text: str) -> list[int]:
    """Return a list such as 6,12,24 from the command line."""
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed. Give whole numbers above 0, such as 6,12,24.")
    return [int(part) for part in text.split(",")]


def compare_searchers(given: argparse.Namespace, slots: Sequence[int]) -> list[dict[str, Any]]:
    """Play all searches and print the comparison, budget by budget; return every search.

    Budgets of less than a full trial for each slot are left out. Raises `InputError` before anything is played.
    """
    searchers: list[str] = given.searchers.split(",")
    names = task_names(given.tasks, given.curves)
    settings = [
        Setting(budget, count, given.curves, given.noise, given.evaluations, given.patience)
        for count, budget in product(slots, given.budgets)
        if budget >= count
    ]
    _refuse_unknown(searchers, names, settings)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    found: list[dict[str, Any]] = []
    for setting in settings:
        jobs = [(searcher, name, seed, setting) for name, seed, searcher in product(names, seeds, searchers)]
        played = _side_by_side(jobs, given.processes)
        print(f"{given.tasks}: {len(names)} tasks, {given.seeds} seeds each, {setting.slots} slots", flush=True)
        for line in lines(played):
            print(f"budget {setting.budget:4g}  {line}", flush=True)
        found += [asdict(each) | {"regret": each.regret} for each in played]
    return found


def _refuse_unknown(searchers: Sequence[str], names: Sequence[str], settings: Sequence[Setting]) -> None:
    if not settings:
        raise InputError("no budget has a full trial for each slot. Give larger --budgets or fewer --slots.")
    task = load_task(names[0], settings[0].curves)
    for searcher in searchers:
        recipe_for(searcher, task, 0, settings[0])


def _side_by_side(jobs: Sequence[tuple[str, str, int, Setting]], processes: int) -> list[Played]:
    if processes == 1:
        return [play(*job) for job in jobs]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(play, *zip(*jobs, strict=True), chunksize=4))


def lines(played: Sequence[Played]) -> Iterator[str]:
    """Yield a line for each searcher of one budget."""
    found = by_searcher(played)
    stock = next((found[name] for name in STOCK if name in found), None)
    for searcher, own in found.items():
        line = f"{searcher:24s} regret {estimate(regrets(own))}"
        rival = nearest_rival(found, searcher)
        if rival is not None:
            line += f"; {difference(own, found[rival])} against {rival}"
        if stock is not None and stock is not own:
            line += f"; {_share_until(own, stock)}"
        yield f"{line}; {_size_of(own)}{_calibration_of(own)}"


Key = tuple[str, int]
"""A task's name and a seed."""


def by_searcher(played: Sequence[Played]) -> dict[str, dict[Key, Played]]:
    """Return the searches of each searcher by task and seed."""
    found: dict[str, dict[Key, Played]] = {}
    for each in played:
        found.setdefault(each.searcher, {})[each.task, each.seed] = each
    return found


def regrets(played: Mapping[Key, Played]) -> dict[Key, float]:
    """Return the normalised regret of every search."""
    return {key: each.regret for key, each in played.items()}


def estimate(values: Mapping[Key, float]) -> Estimate:
    """Return the mean over tasks and seeds with its standard error, over tasks if there are several, else seeds."""
    by_task: dict[str, list[float]] = {}
    for (task, _), value in values.items():
        by_task.setdefault(task, []).append(value)
    units = [statistics.mean(each) for each in by_task.values()] if len(by_task) > 1 else list(values.values())
    error = statistics.stdev(units) / len(units) ** 0.5 if len(units) > 1 else None
    return Estimate(statistics.mean(units), error)


def nearest_rival(found: Mapping[str, Mapping[Key, Played]], searcher: str) -> str | None:
    """Return the searcher with the lowest mean regret beside this one; None: there is no other."""
    others = [name for name in found if name != searcher]
    return min(others, key=lambda name: estimate(regrets(found[name])).mean, default=None)


def difference(own: Mapping[Key, Played], rival: Mapping[Key, Played]) -> Estimate:
    """Return the paired difference of regrets; below 0: `own` is better."""
    return estimate({key: each.regret - rival[key].regret for key, each in own.items()})


def _share_until(own: Mapping[Key, Played], stock: Mapping[Key, Played]) -> str:
    """Say from which share of the search on an export would have been as good as stock's at the end."""
    times = [(each.reached(stock[key].loss), each.budget) for key, each in own.items()]
    shares = [1.0 if time is None else min(1.0, time / budget) for time, budget in times]
    never = sum(time is None for time, _ in times)
    return f"stock's last loss after {statistics.median(shares):.2f} of the search (median; never in {never})"


def _size_of(played: Mapping[Key, Played]) -> str:
    trials, full, seconds = (
        statistics.mean(getattr(each, name) for each in played.values())
        for name in ("trials", "full_length", "wall_seconds")
    )
    return f"{trials:.0f} trials, {full:.1f} at full length, {seconds:.1f} s"


def _calibration_of(played: Mapping[Key, Played]) -> str:
    """Say how often the loss that a trial would have come to lies outside its forecast; 5 % if forecasts were right."""
    found = [forecasted for each in played.values() for forecasted in each.forecasted]
    if not found:
        return ""
    outside = statistics.mean(forecasted.is_outside for forecasted in found)
    return f"; {outside:.0%} of {len(found)} incomplete trials outside two deviations of their forecast"
