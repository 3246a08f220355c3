"""Recording of learning curves: random configurations of the demo's space, on which searches are replayed.

python -m benchmarks.engine.record_curves OUT.csv [--configurations 200] [--twice 40] [--at-once 16]

Trains each configuration to its end, `--at-once` of them side by side in one engine, on a GPU where there is one, and
appends its evaluations. Runs that OUT has already aren't done again. The first `--twice` are trained with a second
seed.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVALUATIONS = 18
"""Evaluations of a trial, evenly over its tokens: at 1/18, 1/9, 1/6, 1/3 and 1/2 of them, among others."""
_COLUMNS = ("configuration", "seed", "ending", "tokens", "eval_loss")


@dataclass(frozen=True)
class Run:
    """A configuration, by its number, with one seed."""

    configuration: int
    seed: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.engine.record_curves", description=__doc__)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--configurations", type=int, default=200)
    arguments.add_argument("--twice", type=int, default=40)
    arguments.add_argument("--at-once", type=int, default=16)
    given = arguments.parse_args(argv)
    done = _done(given.out)
    runs = [run for run in wanted(given.configurations, given.twice) if run not in done]
    opened = _open_engine()
    with ThreadPoolExecutor(given.at_once) as pool:
        futures = {pool.submit(record, run, opened): run for run in runs}
        for number, future in enumerate(as_completed(futures), 1):
            _append(given.out, future.result())
            print(f"{number} of {len(runs)}: {futures[future]}", flush=True)
    return 0


def wanted(configurations: int, twice: int) -> Iterator[Run]:
    """Yield the runs in an order in which any beginning is a table of use."""
    for number in range(configurations):
        yield Run(number, 0)
        if number < twice:
            yield Run(number, 1)


def drawn(space: dict[str, Any], number: int) -> dict[str, Any]:
    """Return the values of a configuration, drawn evenly from the recipe's space.

    Where the space says so, they are drawn evenly in the logarithm.
    """
    lot, values = random.Random(number), {}
    for name, dimension in sorted(space.items()):
        choices = getattr(dimension, "choices", None)
        if choices is not None:
            values[name] = lot.choice(choices)
        elif dimension.log:
            values[name] = math.exp(lot.uniform(math.log(dimension.low), math.log(dimension.high)))
        else:
            values[name] = lot.uniform(dimension.low, dimension.high)
    return values


def record(run: Run, opened: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Train one run; return a line of the table for every evaluation."""
    from trials.records.trial_dir import Origin, TrialDir, read_trial
    from trials.training.training_run import Decision, TrainingRun

    values = drawn(opened["recipe"].space, run.configuration)
    known = {"seed": run.seed, "base_eval_loss": opened["base"]}
    config = opened["recipe"].trial_config(values).model_copy(update=known)
    with tempfile.TemporaryDirectory() as path:
        folder = TrialDir(Path(path) / "trial")
        folder.begin(config, Origin.SINGLE, "curve")
        trained = TrainingRun(config, opened["data"], opened["tokenizer"], folder, lambda _: Decision.CONTINUE)
        ending = opened["engine"].run(trained)
        points = read_trial(folder.path).points
    about = {"configuration": run.configuration, "seed": run.seed, "ending": ending.kind.value}
    return [{**about, **values, "tokens": p.tokens_seen, "eval_loss": round(p.eval_loss, 6)} for p in points]


def _open_engine() -> dict[str, Any]:
    """Return the demo's recipe, tokenizer and rows, its base in an engine, and the base's loss."""
    from search_spaces.loader import load_recipe
    from trials.data.dataset import load_data
    from trials.engine.engine import Engine
    from trials.model.loading import load_tokenizer

    never = ["evaluation.patience=1000", "evaluation.divergence_factor=1000", "wandb=false"]
    recipe = load_recipe("demo", [f"evaluations={EVALUATIONS}", *never], environ={}).recipe
    tokenizer = load_tokenizer(recipe.model)
    data = load_data(recipe.data, tokenizer)
    engine = Engine(recipe.model, recipe.machine)
    base = engine._loop.evaluate(None, list(data.eval.rows)).mean
    return {"recipe": recipe, "tokenizer": tokenizer, "data": data, "engine": engine, "base": base}


def _done(out: Path) -> set[Run]:
    if not out.exists():
        return set()
    with out.open(newline="", encoding="utf-8") as file:
        return {Run(int(row["configuration"]), int(row["seed"])) for row in csv.DictReader(file)}


def _append(out: Path, lines: Sequence[dict[str, Any]]) -> None:
    others = sorted(set(lines[0]) - set(_COLUMNS)) if lines else []
    is_new = not out.exists()
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_COLUMNS[:3], *others, *_COLUMNS[3:]])
        if is_new:
            writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    sys.exit(main())
