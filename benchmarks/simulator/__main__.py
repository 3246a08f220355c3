"""Benchmark: whole searches on a simulated clock. The controller, scheduler, planner and run folder are the real ones.

python -m benchmarks.simulator regret [--tasks lcbench] [--searchers tpe/asha,ray/asha] [--budgets 6,12,24,50]
    the loss of the adapter that a search exports, for samplers and schedulers of the product and for Ray Tune's own
    (ray/asha, ray/none, ray/random), on tasks that this project did not make: docs/scheduling.md
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
from pathlib import Path
from typing import Any

from benchmarks.simulator.deadlines import Outcome
from benchmarks.simulator.deadlines import play as play_random
from benchmarks.simulator.regret_report import add_options, compare_searchers, numbers
from benchmarks.simulator.scale import play_crowded
from trials.errors import InputError

FIRST_SEED = 1000
"""First seed that is played by default; the scheduler was developed with seeds below."""
_BUSY_ENOUGH = 0.97
_MANY_SLOTS = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = _parser().parse_args(argv)
    warnings.simplefilter("ignore")
    try:
        found = {"regret": regret, "deadlines": deadlines, "scale": scale}[given.what](given)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    return 0


def regret(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare searchers on one group of tasks."""
    return compare_searchers(given, given.slots or [1])


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
        crowd = play_crowded((given.slots or [_MANY_SLOTS])[0] // part, given.trials // part, given.first_seed)
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
    add_options(arguments)
    arguments.add_argument("--first-seed", type=int, default=FIRST_SEED)
    arguments.add_argument(
        "--slots", type=numbers, help=f"trials at once; by default 1 (or a list: 1,8), and {_MANY_SLOTS:,} for scale"
    )
    arguments.add_argument("--searches", type=int, default=1000)
    arguments.add_argument("--trials", type=int, default=10_000)
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--json", type=Path, help="writes every search there")
    return arguments


if __name__ == "__main__":
    random.seed(0)
    sys.exit(main())
