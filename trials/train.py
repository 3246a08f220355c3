"""Command line: one trial, without Ray.

python -m trials.train [SPACE] [--config FILE] [--set key=value ...] [--out DIR]
python -m trials.train --resume DIR [--checkpoint STEP]
torchrun --nproc-per-node 2 -m trials.train ...          the same on two GPUs
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from trials.cli import run_command, whole_number
from trials.console.line_log import LineLog
from trials.console.logs import LOG_FILE
from trials.console.terminal import speak_into, survives_hangup, write_behind
from trials.console.unexpected import keep_tracebacks_in
from trials.errors import EXIT_DONE, EXIT_NOTHING_TO_EXPORT, RecipeError, RunFolderError
from trials.sources.source import expanded
from trials.system.disk_full import refuse_unmakeable
from trials.system.gpus import use_one_gpu
from trials.system.locks import exclusive_lock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trials.config import TrialConfig
    from trials.data.dataset import TrialData
    from trials.records.trial_dir import EvalPoint, TrialDir
    from trials.system.distributed import ProcessGroup
    from trials.training.training_run import Decision, TrainingRun

_WRITTEN = (
    "adapter",
    "adapter.new",
    "adapter.old",
    "before.new",
    "checkpoints",
    "ending.json",
    "eval_rows.json",
    "lock",
    "log.txt",
    "memory.json",
    "metrics.jsonl",
    "score_rows.jsonl",
    "tensorboard",
    "wandb_run",
)
"""Names that a trial writes in its folder."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
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
        "--out",
        type=expanded,
        help="trial folder (default: the config file's output_dir, or runs/trial-<space>-<time>)",
    )
    arguments.add_argument(
        "--resume", type=expanded, metavar="DIR", help="go on with the trial in this folder, from its newest checkpoint"
    )
    arguments.add_argument(
        "--checkpoint",
        type=whole_number(1),
        metavar="STEP",
        help="with --resume: from the checkpoint of this step; what came later is moved aside",
    )
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(lambda: _command(parser().parse_args(argv)))


def _command(arguments: argparse.Namespace) -> int:
    with survives_hangup():
        return _train(arguments) if arguments.resume is None else _resume(arguments)


def _train(arguments: argparse.Namespace) -> int:
    from search_spaces.guide.config import read_guide_config
    from search_spaces.loader import DEFAULT_RECIPE, GUIDE_RECIPE, load_recipe
    from trials.records.trial_dir import TrialDir

    if arguments.checkpoint is not None:
        raise RunFolderError(f"--checkpoint {arguments.checkpoint} of which trial? Give its folder with --resume.")
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
    path = out or Path("runs") / f"trial-{name.replace('/', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
    refuse_unmakeable(path, "--out")
    TrialDir(path).refuse_taken()
    _refuse_other_files(path)
    if "LOCAL_RANK" not in os.environ:  # torchrun sets it, and every process has its own GPU
        _use_gpu(gpu)
    return _start(resolved.recipe.trial_config({}), name, path)


def _refuse_other_files(path: Path) -> None:
    """Raise `RunFolderError` if a trial in that folder would replace or add to files that no trial has written."""
    taken = next((path / name for name in _WRITTEN if os.path.lexists(path / name)), None)
    if taken is not None:
        raise RunFolderError(f"{taken} is there already, and a trial would replace it. Give another --out folder.")


def _use_gpu(number: str | None) -> None:
    """Restrict this process to one GPU. Raises `RecipeError` if there is none of that number."""
    if not use_one_gpu(number):
        raise RecipeError(f"gpu_id = {number}: this machine has no such GPU. Give one that nvidia-smi lists.")


def _start(config: TrialConfig, name: str, path: Path) -> int:
    from trials.records.trial_dir import TrialDir
    from trials.sources.pinning import pinned_data, pinned_model
    from trials.system.distributed import joined_process_group
    from trials.training.training_run import TrainingRun

    config = config.model_copy(update={"data": pinned_data(config.data), "model": pinned_model(config.model)})
    config = _with_named_targets(config)
    with joined_process_group() as ranks:
        _refuse_small_batch(config, ranks)
        tokenizer, data = _load(config)
        folder = TrialDir(ranks.on_rank_zero(lambda: path), is_written=ranks.is_first)
        ranks.on_rank_zero(lambda: _begin(folder, config, name, data.fingerprint))
        with _held(folder.path, ranks):
            return _run(TrainingRun(config, data, tokenizer, folder, _print_evaluation, ranks=ranks), name)


def _with_named_targets(config: TrialConfig) -> TrialConfig:
    """Return the trial with the names of its base model's layers in place of `all-linear`."""
    from trials.model.loading import named_targets

    targets = {"target_modules": named_targets(config.model, config.hyperparameters.target_modules)}
    return config.model_copy(update={"hyperparameters": config.hyperparameters.model_copy(update=targets)})


def _begin(folder: TrialDir, config: TrialConfig, name: str, fingerprint: str) -> None:
    """Call `TrialDir.begin`. Raises `RunFolderError` if the folder can't be made after all."""
    from trials.records.trial_dir import Origin

    try:
        folder.begin(config, Origin.SINGLE, name, fingerprint)
    except OSError as error:
        raise RunFolderError(f"can't write to {folder.path}: {error.strerror}. Give another --out folder.") from error


def _refuse_small_batch(config: TrialConfig, ranks: ProcessGroup) -> None:
    rows = config.hyperparameters.effective_batch
    if rows < ranks.world_size:
        raise RecipeError(
            f"effective_batch {rows} can't be divided over {ranks.world_size} processes. Give at least as many rows."
        )


@contextmanager
def _held(path: Path, ranks: ProcessGroup) -> Iterator[None]:
    """Hold `exclusive_lock` in one process for all that train the trial; that process logs its output in the folder."""
    with ExitStack() as held:
        ranks.on_rank_zero(lambda: held.enter_context(exclusive_lock(path)))
        log = LineLog(path / LOG_FILE)
        keep_tracebacks_in(log)
        if ranks.is_first:
            log.append(f"the trial is trained by process {os.getpid()} on {socket.gethostname()}")
            speak_into(log)
        else:
            write_behind()
        yield


def _resume(arguments: argparse.Namespace) -> int:
    from trials.records.checkpoints import choose_checkpoint, set_broken_aside
    from trials.records.rewind import refuse_other_rows, refuse_to_resume, rewind
    from trials.records.trial_dir import TrialDir, read_trial
    from trials.system.distributed import joined_process_group
    from trials.training.training_run import TrainingRun

    _refuse_other_settings(arguments)
    record = read_trial(arguments.resume)
    refuse_to_resume(record, arguments.checkpoint)
    checkpoint = choose_checkpoint(record.folder, arguments.checkpoint)
    with joined_process_group() as ranks:
        _refuse_small_batch(record.config, ranks)
        tokenizer, data = _load(record.config)
        refuse_other_rows(record, data.fingerprint)

        def go_back() -> None:
            set_broken_aside(record.folder)
            kept = rewind(record, checkpoint)
            said = f"; what came after it is in {kept}" if kept else ""
            print(f"going on from the checkpoint of step {checkpoint.step}{said}", flush=True)

        with _held(record.folder, ranks):
            ranks.on_rank_zero(go_back)
            folder = TrialDir(record.folder, is_written=ranks.is_first)
            run = TrainingRun(
                *(record.config, data, tokenizer, folder, _print_evaluation), checkpoint=checkpoint, ranks=ranks
            )
            return _run(run, record.name)


def _refuse_other_settings(arguments: argparse.Namespace) -> None:
    """Raise `RunFolderError` for options whose values a resumed trial already has."""
    values = vars(arguments)
    flags = {"space": "SPACE", "set": "--set", "out": "--out", "config": "--config"}
    flags["fallback_to_default"] = "--fallback-to-default"
    given = [flag for name, flag in flags.items() if values[name]]
    if given:
        raise RunFolderError(
            f"--resume {arguments.resume} goes on with the settings and in the folder of that trial. "
            f"Leave out {', '.join(given)}, or start a new trial without --resume."
        )


def _load(config: TrialConfig) -> tuple[PreTrainedTokenizerBase, TrialData]:
    from trials.data.dataset import load_data
    from trials.model.loading import check_base, check_targets, load_tokenizer, refuse_unknown_tokens

    tokenizer = load_tokenizer(config.model)
    check_base(config.model)
    check_targets(config.model, config.hyperparameters.target_modules)
    data = load_data(config.data, tokenizer)
    refuse_unknown_tokens(config.model, data, tokenizer)
    return tokenizer, data


def _run(run: TrainingRun, name: str) -> int:
    from trials.records.checkpoints import whole_checkpoints
    from trials.run import run_single_trial

    folder = run.folder
    try:
        ending = run_single_trial(run, group=name)
    except KeyboardInterrupt:
        if run.ranks.is_first and whole_checkpoints(folder.path):
            sys.stderr.write(f"go on with it: python -m trials.train --resume {shlex.quote(str(folder.path))}\n")
        raise
    if not run.ranks.is_first:
        return EXIT_DONE
    if ending is not None:
        print(f"{ending.kind.value}: {ending.reason}")
    if not folder.adapter.is_dir():
        sys.stderr.write("it left no adapter: it ended before its first evaluation\n")
        return EXIT_NOTHING_TO_EXPORT
    print(f"best adapter: {folder.adapter}")
    return EXIT_DONE


def _print_evaluation(point: EvalPoint) -> Decision:
    from trials.training.training_run import Decision

    speed = f", {point.tokens_per_second:,.0f} tokens/s" if point.tokens_per_second else ""
    score = "" if point.score is None else f", score {point.score:.4f}"
    found = f"eval loss {point.eval_loss:.4f}{score}{speed}"
    print(f"step {point.step}, {point.tokens_seen:,} tokens: {found}", flush=True)
    return Decision.CONTINUE


if __name__ == "__main__":
    sys.exit(main())
