"""Benchmark: real tokens per second of one 24 GB card, by every way to train LoRA trials on it.

python -m benchmarks.engine.throughput [--only NAME,...] [--seconds 10] [--json OUT] [--unsloth DIR] [--tiny]
python -m benchmarks.engine.throughput --search [--json OUT] [--tiny]      whole searches: benchmarks.system.end_to_end

The base is a random Mistral-7B in NF4 with 23.5 GiB allowed; rows are those of `benchmarks.engine.workload`. Every
entry runs in a process of its own, and the next one imports its libraries while this one loads its model. Ratios and
shares of the floor are of one run. --tiny tries everything on a CPU with a tiny model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.engine.jobs import ALL_LINEAR, ATTENTION, EngineWork, Job
from benchmarks.engine.processes import Children
from benchmarks.engine.roofline import RTX_4090, Rates, floors
from benchmarks.engine.table import floors_text, rows_of, table
from benchmarks.engine.workload import MISTRAL_7B, TINY, row_lengths
from benchmarks.system.end_to_end import compare_searches
from trials.system.files import write_json

ENTRY_SECONDS = 150
"""Seconds after which an entry is ended; a hanging one mustn't take the others' time."""
SHORTEST_SECONDS = 30
"""Seconds that must be left for an entry to be begun."""
ORDER = (
    *(
        "guide",
        "trl-tuned",
        "unsloth",
        "ours-1",
        "ours-8",
        "ours-1-small",
        "ours-8-small",
        "ours-8-mixed",
        "ours-1-dropout",
    ),
    *("trl-tuned-all", "ours-1-all", "ours-8-all", "trl-tuned-2048", "unsloth-2048", "ours-1-2048", "ours-8-2048"),
    *("ours-2", "ours-4", "four-processes", "trl-tuned-64"),
)
"""Order of the entries; if time runs out, the last ones aren't run."""
_MIXED = EngineWork(
    8, 16, (8, 16, 32, 64) * 2, (ATTENTION, ALL_LINEAR, ("q_proj", "v_proj"), (*ATTENTION, "down_proj")) * 2
)


@dataclass(frozen=True)
class Entry:
    """A row of the table: its job, and the (rows at once, accumulation) to try; the first that fits counts."""

    job: Job
    splits: tuple[tuple[int, int], ...]

    def jobs(self) -> Iterator[Job]:
        """Return the jobs in the order in which they are tried."""
        return (replace(self.job, micro_rows=rows, accumulation=accumulation) for rows, accumulation in self.splits)


def all_entries(work: Path, seconds: float, allowed_gib: float, *, tiny: bool) -> dict[str, Entry]:
    """Return every entry by name, in `ORDER`."""
    base = Job("trl", "", str(work), seconds, tiny, allowed_gib)
    tuned = replace(base, liger=True, dropout=0.0)
    free = replace(base, kind="unsloth", dropout=0.0)
    sixteen, long = ((16, 1), (8, 2)), ((8, 2), (4, 4), (2, 8))
    peers = {
        "guide": Entry(base, ((2, 8),)),
        "trl-tuned": Entry(tuned, sixteen),
        "unsloth": Entry(free, sixteen),
        "trl-tuned-all": Entry(replace(tuned, targets=ALL_LINEAR), sixteen),
        "trl-tuned-2048": Entry(replace(tuned, rows="long"), long),
        "unsloth-2048": Entry(replace(free, rows="long"), long),
        "trl-tuned-64": Entry(tuned, ((64, 1), (32, 2))),
        "four-processes": Entry(replace(base, members=4, memory_gib=allowed_gib / 4), ((2, 8),)),
    }
    found = peers | _engine_entries(replace(base, kind="engine", dropout=0.0))
    return {name: replace(found[name], job=replace(found[name].job, name=name)) for name in ORDER}


def _engine_entries(base: Job) -> dict[str, Entry]:
    def entry(trials: int, batch: int = 16, targets: tuple[str, ...] = ATTENTION, **changes: Any) -> Entry:
        work = EngineWork(trials, batch, (16,) * trials, (targets,) * trials)
        return Entry(replace(base, engine=work, **changes), ((batch, 1),))

    return {
        **{f"ours-{trials}": entry(trials) for trials in (1, 2, 4, 8)},
        **{f"ours-{trials}-small": entry(trials, batch=4) for trials in (1, 8)},
        "ours-8-mixed": Entry(replace(base, engine=_MIXED, dropout=0.05), ((16, 1),)),
        "ours-1-dropout": entry(1, dropout=0.05),
        **{f"ours-{trials}-all": entry(trials, targets=ALL_LINEAR) for trials in (1, 8)},
        **{f"ours-{trials}-2048": entry(trials, rows="long") for trials in (1, 8)},
    }


def measure_all(entries: Sequence[Entry], unsloth: Path | None, ends: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and result of every entry as soon as it's there; `ends` is on the monotonic clock."""
    ahead = Children(next(entries[0].jobs()), unsloth) if entries else None
    for number, entry in enumerate(entries):
        present = ahead
        following = entries[number + 1 : number + 2]
        ahead = Children(next(following[0].jobs()), unsloth) if following else None
        try:
            found = _measure(entry, present, unsloth, ends)
        except BaseException:
            if ahead is not None:
                ahead.close()
            raise
        yield entry.job.name, found


def _measure(entry: Entry, begun: Children | None, unsloth: Path | None, ends: float) -> dict[str, Any]:
    """Try one split after the other until one fits; the first one's processes have begun already."""
    found: dict[str, Any] = {}
    for job in entry.jobs():
        children = begun or Children(job, unsloth)
        begun = None
        left = ends - time.monotonic()
        if left < SHORTEST_SECONDS:
            children.close()
            return {"error": "not run: the time was over"}
        found = {"split": f"{job.micro_rows}x{job.accumulation}", **children.run(min(left, ENTRY_SECONDS))}
        if not found.get("out_of_memory"):
            break
    return found


def measure_entries(arguments: argparse.Namespace, ends: float) -> dict[str, Any]:
    """Measure the machine and the entries, print the table, and return everything for the JSON."""
    size = TINY if arguments.tiny else MISTRAL_7B
    entries = all_entries(arguments.work, arguments.seconds, arguments.allowed_gib, tiny=arguments.tiny)
    chosen = [entries[name] for name in arguments.only or entries]
    rates = measure_machine(arguments)
    lengths = [row_lengths(rows, size) for rows in ("short", "long")]
    here, there = floors(rates, size, *lengths), floors(RTX_4090, size, *lengths)
    print(floors_text(rates, here, there), flush=True)
    found: dict[str, Any] = {}
    result: dict[str, Any] = {"tiny": arguments.tiny, "rates": asdict(rates), "floors": asdict(here)}
    result["projected_floors_4090"] = asdict(there)
    for name, measured in measure_all(chosen, arguments.unsloth, ends):
        found[name] = measured
        print(f"{name}: {json.dumps(measured)}", flush=True)
        result["entries"] = rows_of(found, here, there)
        write_json(arguments.json, result)
    print(table(result["entries"]))
    return result


def measure_machine(arguments: argparse.Namespace) -> Rates:
    """Make model and rows, and return the machine's rates. Raises RuntimeError if that fails: nothing works then."""
    base = Job("prepare", "prepare", str(arguments.work), arguments.seconds, arguments.tiny)
    for job in (base, replace(base, kind="machine", name="machine")):
        found = Children(job).run(300)
        if "error" in found:
            raise RuntimeError(f"{job.name}: {found['error']}; see {job.folder / 'logs'}")
    return Rates(**found)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.engine.throughput", description=__doc__)
    arguments.add_argument("--tiny", action="store_true", help="a tiny model and short rows, for a CPU")
    arguments.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,...", help="some entries only")
    arguments.add_argument("--seconds", type=float, default=10.0, help="that an entry is measured for, warm")
    arguments.add_argument("--json", type=Path, default=Path("benchmark.json"), help="where everything goes")
    arguments.add_argument("--work", type=Path, help="where model and rows are, or are made")
    arguments.add_argument("--unsloth", type=Path, metavar="DIR", help="folder of packages for Unsloth alone")
    arguments.add_argument("--allowed-gib", type=float, default=23.5, help="GPU memory for all processes of an entry")
    arguments.add_argument("--time-limit", type=float, default=570.0, help="seconds; entries after it aren't run")
    arguments.add_argument("--search", action="store_true", help="whole searches: the stock pipeline and ours")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    ends = time.monotonic()
    options = parser()
    arguments = options.parse_args(argv)
    ends += arguments.time_limit
    folder = arguments.work or Path(tempfile.gettempdir()) / ("benchmark-tiny" if arguments.tiny else "benchmark")
    arguments.work = folder.resolve()
    known = all_entries(arguments.work, 1.0, 1.0, tiny=True)
    if unknown := set(arguments.only or ()) - known.keys():
        options.error(f"unknown entries {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    if arguments.search:
        measure_machine(arguments)
        write_json(arguments.json, compare_searches(arguments.work, tiny=arguments.tiny))
    else:
        measure_entries(arguments, ends)
    return 0


if __name__ == "__main__":
    sys.exit(main())
