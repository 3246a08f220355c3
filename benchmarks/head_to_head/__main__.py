"""Benchmark: what a fixed wall clock gives, in our search and in what a user might do instead, each run for real.

    python -m benchmarks.head_to_head MODEL TRAIN EVAL TEST --budgets 4m,8m [--cpu]

One after the other, from the start of each command to its adapter on disk: the recipe as written, the recipe for the
whole time, a stock Ray Tune search, our search with stock's parts, our search. All adapters are judged on TEST by the
same code. Writes OUT/head_to_head.json, OUT/curves.html and OUT/table.txt; a rival that OUT has is not run again.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import ROOT
from benchmarks.head_to_head.contest import Contest, checked, claim_folder, environment
from benchmarks.head_to_head.matches import Matches
from benchmarks.head_to_head.outcomes import Outcome
from benchmarks.head_to_head.plot import page
from benchmarks.head_to_head.rivals import Rival
from benchmarks.head_to_head.table import as_json, lines, table_text
from search_spaces.durations import parse_duration
from search_spaces.layers import resolve_path
from search_spaces.loader import DEFAULT_RECIPE
from trials.cli import number_within, run_command
from trials.errors import EXIT_DONE, InputError, RecipeError
from trials.sources.source import expanded
from trials.system.files import write_json, write_text
from trials.system.gpus import gpu_count, use_one_gpu

T = TypeVar("T")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.head_to_head",
        description="Run our search and what a user might do instead, each for the same wall clock, and compare.",
    )
    add = arguments.add_argument
    add("model", metavar="MODEL", help="a folder, or a model's name on the hub")
    add("train", metavar="TRAIN", help="rows that are trained on")
    add("eval", metavar="EVAL", help="rows that all select by")
    add("test", metavar="TEST", help="rows that judge, none of which is in TRAIN or EVAL")
    add("--budgets", type=several(parse_budget), required=True, metavar="4m,8m", help="wall clocks")
    add("--seeds", type=several(parse_seed), default=[0], metavar="0,1", help="each is a whole comparison (default: 0)")
    add("--recipe", default=DEFAULT_RECIPE, help=f"gives format, space and starting points (default: {DEFAULT_RECIPE})")
    add("--set", nargs="+", action="extend", default=[], metavar="key=value", help="override anything in the recipe")
    add("--rivals", type=several(Rival), default=list(Rival), metavar="A,B", help=f"of {', '.join(Rival)}")
    add("--cpu", action="store_true", help="use no GPU")
    add("--gpu-memory-gib", type=number_within(0.1, 10_000), metavar="GIB", help="GPU memory that a rival may use")
    add("--out", type=expanded, metavar="DIR", help="output folder (default: runs/head-to-head-<time>)")
    return arguments


def several(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a parser for argparse: values with commas between them, each once, in order."""

    def parsed(text: str) -> list[T]:
        try:
            return list(dict.fromkeys(parse(part.strip()) for part in text.split(",")))
        except (ValueError, InputError) as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error

    return parsed


def parse_budget(text: str) -> float:
    """Return a budget in seconds."""
    return parse_duration(text)


def parse_seed(text: str) -> int:
    """Return a seed. Raises ValueError for anything but a whole number that isn't negative."""
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no seed. Give whole numbers, 0 or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    return run_command(lambda: _compare(parser().parse_args(argv)))


def _interrupt(*_: object) -> None:
    """End as by Ctrl-C, so that the rival's processes are ended, too."""
    raise KeyboardInterrupt


def _compare(given: argparse.Namespace) -> int:
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    contest = contest_of(given)
    _choose_device(contest)
    known = checked(contest)
    out = (given.out or Path("runs") / f"head-to-head-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    claim_folder(out, contest)
    rivals = [rival for rival in Rival if rival in given.rivals]
    print(f"{known.test_rows} rows judge; the recipe as written is {known.full_tokens:,} tokens; results in {out}")
    matches = Matches(contest, known, environment(contest, os.environ, ROOT), out)
    outcomes = [
        matches.outcome(rival, budget, seed) for budget in given.budgets for seed in given.seeds for rival in rivals
    ]
    _write(out, contest, outcomes, matches)
    return EXIT_DONE


def contest_of(given: argparse.Namespace) -> Contest:
    """Return the contest that options describe, with absolute paths: it may be gone on with from another folder."""
    here = Path.cwd()
    model, train, dev, test = (resolve_path(text, here) for text in (given.model, given.train, given.eval, given.test))
    is_file = given.recipe.endswith((".yaml", ".yml"))
    recipe = str(Path(given.recipe).absolute()) if is_file else given.recipe
    return Contest(recipe, model, train, dev, test, tuple(given.set), given.cpu, given.gpu_memory_gib)


def _choose_device(contest: Contest) -> None:
    """Hide all GPUs but the first from all rivals, or all of them. Raises `RecipeError` if there is no GPU."""
    if contest.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not gpu_count():
        raise RecipeError("this machine has no NVIDIA GPU. Give --cpu to compare on the CPU.")
    else:
        use_one_gpu()


def _write(out: Path, contest: Contest, outcomes: Sequence[Outcome], matches: Matches) -> None:
    judged = matches.judged(outcomes)
    found = lines(outcomes, judged)
    content: dict[str, Any] = {"contest": vars(contest), "results": as_json(found)}
    write_json(out / "head_to_head.json", content)
    write_text(out / "curves.html", page(outcomes))
    text = table_text(found, judged)
    write_text(out / "table.txt", text + "\n")
    print(f"\n{text}\n")
    print("loss: nats per token on TEST; minus ours: above 0 where our search is better, ± paired standard error,")
    print("* where the 95 % interval excludes 0; trained: the adapter's tokens over those of the recipe as written;")
    print("tokens/s: training tokens of all trials over the time used")
    print(f"plot: {out / 'curves.html'}")
    print(f"all figures: {out / 'head_to_head.json'}")


if __name__ == "__main__":
    sys.exit(main())
