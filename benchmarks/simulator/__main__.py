"""Benchmark: whole searches on a simulated clock. The controller, scheduler, planner and run folder are the real ones.

python -m benchmarks.simulator regret [--landscape recorded] [--budgets 6,12,24,50] [--seeds 30] [--slots 1]
    the loss at the end of searches on recorded learning curves (or modelled ones, that mislead early): ours, stock
    Ray Tune (its ASHAScheduler and OptunaSearch), TPE without pruning, and random search, with the same training time
python -m benchmarks.simulator deadlines [--searches 1000]
    searches of random length, speed and accidents: deadline met, a full-length trial, share of the time at work
python -m benchmarks.simulator scale [--slots 1000] [--trials 10000]
    how long the controller takes for a decision, and its memory
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulator.deadlines import Outcome
from benchmarks.simulator.deadlines import play as play_random
from benchmarks.simulator.regret import OURS, STRATEGIES, Played
from benchmarks.simulator.regret import play as play_replayed
from benchmarks.simulator.scale import play_crowded
from benchmarks.simulator.stock_searchers import Stock

FIRST_SEED = 1000
"""First seed that is played by default; the scheduler was developed with seeds below."""
_BUSY_ENOUGH = 0.97
_DRAWS = 2000
_MANY_SLOTS = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = _parser().parse_args(argv)
    warnings.simplefilter("ignore")
    found = {"regret": regret, "deadlines": deadlines, "scale": scale}[given.what](given)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    return 0


def regret(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare the losses at the end of our searches and of others, with a line for each budget and strategy."""
    found: list[dict[str, Any]] = []
    for budget in map(float, given.budgets.split(",")):
        by_strategy = {strategy: _replayed(given, strategy, budget) for strategy in STRATEGIES}
        for strategy, played in by_strategy.items():
            print(_regret_line(budget, strategy, played), flush=True)
        print(_against_stock(by_strategy[OURS], by_strategy[Stock.ASHA.value]), flush=True)
        found += [
            asdict(simulated) | {"regret": simulated.regret} for played in by_strategy.values() for simulated in played
        ]
    return found


def _replayed(given: argparse.Namespace, strategy: str, budget: float) -> list[Played]:
    work = partial(play_replayed, strategy, given.landscape, budget, slots=given.slots or 1)
    return _side_by_side(work, range(given.first_seed, given.first_seed + given.seeds), given.processes)


def _regret_line(budget: float, strategy: str, played: Sequence[Played]) -> str:
    regrets = [simulated.regret for simulated in played]
    low, high = _interval(regrets)
    trials, full = (
        statistics.mean(getattr(simulated, name) for simulated in played) for name in ("trials", "full_length")
    )
    return (
        f"budget {budget:4g}  {strategy:7s} median regret {statistics.median(regrets):.4f} ({low:.4f}-{high:.4f}), "
        f"mean {statistics.mean(regrets):.4f}; {trials:.0f} trials, {full:.1f} at full length"
    )


def _against_stock(ours: Sequence[Played], stock: Sequence[Played]) -> str:
    """Say how soon ours reached stock's last loss, seed by seed.

    The time is given relative to the whole search, and to the time at which stock reached it.
    """
    final = [simulated.best[-1] for simulated in stock]
    reached = [simulated.reached(loss) for simulated, (_, loss) in zip(ours, final, strict=True)]
    of_search = [time / simulated.budget for time, simulated in zip(reached, ours, strict=True)]
    of_stock = [time / at for time, (at, _) in zip(reached, final, strict=True)]
    medians = [statistics.median(one.regret for one in played) for played in (ours, stock)]
    means = [statistics.mean(one.regret for one in played) for played in (ours, stock)]
    never = sum(time == float("inf") for time in reached)
    return (
        f"            ours has stock's last loss after {statistics.median(of_search):.2f} of the search (median; "
        f"{statistics.median(of_stock):.2f} of stock's time to it; never in {never}); "
        f"regret {_ratio(*medians)} of stock's in the median, {_ratio(*means)} in the mean"
    )


def _ratio(ours: float, stock: float) -> str:
    return f"{ours / stock:.2f}" if stock else ("infinitely much" if ours else "none")


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the middle 90 % of bootstrapped medians."""
    lot = np.random.default_rng(0)
    medians = np.median(lot.choice(values, (_DRAWS, len(values))), axis=1)
    low, high = np.quantile(medians, [0.05, 0.95])
    return float(low), float(high)


def deadlines(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Play random searches, and print how many met their deadline and how busy their slots were."""
    found = _side_by_side(play_random, range(given.first_seed, given.first_seed + given.searches), given.processes)
    fits = [simulated for simulated in found if simulated.one_fits]
    busy = sorted(simulated.busy for simulated in found)
    hours = _range(found, lambda simulated: simulated.seconds / 3600)
    print(f"{len(found)} searches of {hours} hours, {sum(simulated.trials for simulated in found)} trials")
    print(f"{sum(n.accidents for n in found)} accidents, in {sum(n.accidents > 0 for n in found)} searches")
    print(f"deadline met: {sum(simulated.met for simulated in found)}, earliest and latest " + _margins(found))
    print(f"a full-length trial: {sum(simulated.full_length > 0 for simulated in fits)} of {len(fits)} where one fits")
    print(f"trials shortened in {sum(simulated.shortened < 1 for simulated in found)} searches")
    print(
        f"at work: median {statistics.median(busy):.2%}, least {busy[0]:.2%}; "
        f"{sum(share >= _BUSY_ENOUGH for share in busy)} searches with {_BUSY_ENOUGH:.0%} and more; all together "
        f"{_together(found):.2%}"
    )
    for simulated in found:
        if not simulated.met or (simulated.one_fits and not simulated.full_length) or simulated.busy < _BUSY_ENOUGH:
            print(f"  {simulated}")
    return [asdict(simulated) for simulated in found]


def _together(found: Sequence[Outcome]) -> float:
    """Return the busy time of all searches over the time of all searches."""
    return sum(simulated.busy * simulated.seconds for simulated in found) / sum(
        simulated.seconds for simulated in found
    )


def _margins(found: Sequence[Outcome]) -> str:
    left = [simulated.seconds - simulated.ended for simulated in found]
    return f"{max(left):.0f} s and {min(left):.0f} s before it"


def _range(found: Sequence[Outcome], of: Callable[[Outcome], float]) -> str:
    return f"{min(map(of, found)):.1f} to {max(map(of, found)):.1f}"


def scale(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the controller with many GPUs and trials; smaller searches come first, to see the growth."""
    found = []
    for part in (16, 4, 1):
        crowd = play_crowded((given.slots or _MANY_SLOTS) // part, given.trials // part, given.first_seed)
        print(crowd.in_words(), flush=True)
        found.append(asdict(crowd))
    return found


def _side_by_side(work: Callable[[int], Any], seeds: Iterable[int], processes: int) -> list[Any]:
    if processes == 1:
        return [work(seed) for seed in seeds]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(work, seeds))


def _parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.simulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("what", choices=["regret", "deadlines", "scale"])
    arguments.add_argument("--landscape", choices=["recorded", "modelled"], default="recorded")
    arguments.add_argument("--budgets", default="6,12,24,50", help="in full trials' worth of training")
    arguments.add_argument("--seeds", type=int, default=30)
    arguments.add_argument("--first-seed", type=int, default=FIRST_SEED)
    arguments.add_argument("--slots", type=int, help=f"trials at once; by default 1, and {_MANY_SLOTS:,} for scale")
    arguments.add_argument("--searches", type=int, default=1000)
    arguments.add_argument("--trials", type=int, default=10_000)
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--json", type=Path, help="writes every search there")
    return arguments


if __name__ == "__main__":
    random.seed(0)
    sys.exit(main())
