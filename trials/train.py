"""Command line: one trial, without Ray.

python -m trials.train [SPACE] [--set key=value ...] [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from trials.command_line import run
from trials.errors import EXIT_DONE, EXIT_NOTHING_TO_EXPORT


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    arguments = argparse.ArgumentParser(prog="python -m trials.train", description="Run one trial, without Ray.")
    arguments.add_argument("space", nargs="?", default="demo", help="a recipe's name, or the path of a YAML file")
    arguments.add_argument("--set", nargs="+", default=[], metavar="key=value", help="override anything in the recipe")
    arguments.add_argument("--out", type=Path, help="trial folder (default: runs/trial-<space>-<date>-<time>)")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run(lambda: _train(parser().parse_args(argv)))


def _train(arguments: argparse.Namespace) -> int:
    from search_spaces.recipe import load_recipe
    from trials.records import EvalPoint, Origin, TrialFolder

    recipe = load_recipe(arguments.space, arguments.set).recipe
    config = recipe.trial_config({})
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    folder = TrialFolder(arguments.out or Path("runs") / f"trial-{recipe.name.replace('/', '-')}-{stamp}")
    folder.refuse_taken()

    from trials.data import load_data
    from trials.model import load_tokenizer
    from trials.tracking import wandb_run
    from trials.training import Decision, run_trial, use_threads

    tokenizer = load_tokenizer(config.model)
    data = load_data(config.data, tokenizer)
    folder.begin(config, Origin.SINGLE, recipe.name)
    use_threads(config.machine)

    def report(point: EvalPoint) -> Decision:
        speed = f", {point.tokens_per_second:,.0f} tokens/s" if point.tokens_per_second else ""
        print(f"step {point.step}, {point.tokens_seen:,} tokens: eval loss {point.eval_loss:.4f}{speed}", flush=True)
        return Decision.GO_ON

    with wandb_run(folder.path, config, group=recipe.name):
        ending = run_trial(config, data, tokenizer, folder, report)
    if ending is not None:
        print(f"{ending.kind.value}: {ending.reason}")
    if not folder.adapter.is_dir():
        sys.stderr.write("it left no adapter: it ended before its first evaluation\n")
        return EXIT_NOTHING_TO_EXPORT
    print(f"best adapter: {folder.adapter}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
