"""Command line: one trial, without Ray.

python -m trials.train [SPACE] [--config FILE] [--set key=value ...] [--out DIR]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from trials.command_line import run
from trials.errors import EXIT_DONE, EXIT_NOTHING_TO_EXPORT, RecipeError

if TYPE_CHECKING:
    from trials.config import TrialConfig
    from trials.records import TrialFolder


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    arguments = argparse.ArgumentParser(prog="python -m trials.train", description="Run one trial, without Ray.")
    arguments.add_argument(
        "space", nargs="?", help="a recipe's name (default: demo, or nli_cot with --config), or a YAML file"
    )
    arguments.add_argument("--config", metavar="FILE", help="one of the CoT-NLI guide's Python files, or `default`")
    arguments.add_argument(
        "--fallback-to-default", action="store_true", help="go on with the guide's default if FILE fails to load"
    )
    arguments.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="override anything in the recipe; with --config, the guide's names are understood too",
    )
    arguments.add_argument(
        "--out", type=Path, help="trial folder (default: the config file's output_dir, or runs/trial-<space>-<time>)"
    )
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run(lambda: _train(parser().parse_args(argv)))


def _train(arguments: argparse.Namespace) -> int:
    from search_spaces.guide_config import read_guide_config
    from search_spaces.recipe import DEFAULT_RECIPE, GUIDE_RECIPE, load_recipe
    from trials.records import TrialFolder

    if arguments.fallback_to_default and not arguments.config:
        raise RecipeError("--fallback-to-default is for a config file that fails to load. Give one with --config.")
    config_file = None
    if arguments.config:
        config_file = read_guide_config(arguments.config, fallback=arguments.fallback_to_default)
    space = arguments.space or (GUIDE_RECIPE if config_file else DEFAULT_RECIPE)
    resolved = load_recipe(space, arguments.set, guide_config=config_file)
    name, out, gpu = resolved.recipe.name, arguments.out, None
    if resolved.guide:
        resolved.guide.log_unused()
        out, gpu = out or resolved.guide.output_dir, resolved.guide.gpu(os.environ)
    default = Path("runs") / f"trial-{name.replace('/', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = TrialFolder(out or default)
    folder.refuse_taken()
    _use_gpu(gpu)
    return _run(resolved.recipe.trial_config({}), name, folder)


def _use_gpu(number: str | None) -> None:
    """Hides all GPUs but one, before torch looks for them. Raises `RecipeError` if there is no such GPU."""
    if number is None:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = number
    import torch

    has_driver = Path("/proc/driver/nvidia/version").exists()
    if has_driver and not torch.cuda.is_available():
        raise RecipeError(f"gpu_id = {number}: this machine has no such GPU. Give one that nvidia-smi lists.")


def _run(config: TrialConfig, name: str, folder: TrialFolder) -> int:
    from trials.data import load_data
    from trials.model import check_targets, load_tokenizer
    from trials.pinning import pinned_data, pinned_model
    from trials.records import EvalPoint, Origin
    from trials.tracking import wandb_run
    from trials.training import Decision, run_trial, use_threads

    config = config.model_copy(update={"data": pinned_data(config.data), "model": pinned_model(config.model)})
    tokenizer = load_tokenizer(config.model)
    check_targets(config.model, config.hyperparameters.target_modules)
    data = load_data(config.data, tokenizer)
    folder.begin(config, Origin.SINGLE, name)
    use_threads(config.machine)

    def report(point: EvalPoint) -> Decision:
        speed = f", {point.tokens_per_second:,.0f} tokens/s" if point.tokens_per_second else ""
        score = "" if point.score is None else f", score {point.score:.4f}"
        found = f"eval loss {point.eval_loss:.4f}{score}{speed}"
        print(f"step {point.step}, {point.tokens_seen:,} tokens: {found}", flush=True)
        return Decision.GO_ON

    with wandb_run(folder.path, config, group=name):
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
