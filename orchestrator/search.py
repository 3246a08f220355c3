"""Command line: a whole search, from a recipe to a verified adapter and a report.

python -m orchestrator.search [SPACE] [--budget 9h | --until 07:00] [--out DIR] [--set key=value ...]
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from orchestrator.monitoring.search_log import log_command
from orchestrator.planning.forecast import forecast_search
from orchestrator.planning.placement import refuse_small_batches
from orchestrator.planning.plan_text import DataSizes, describe
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.preflight.checks import decisive_checks, preflight_lines, run_checks
from orchestrator.ray_setup.address import named_cluster
from orchestrator.state.check_result import Severity, raise_if_blocked
from orchestrator.state.clock import SteadyClock
from orchestrator.state.deadline import Deadline, from_budget, from_until
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.storage.locations import (
    address_of,
    create_run,
    exclusive_access,
    open_run,
    refuse_taken_place,
    upload,
)
from orchestrator.supervisor.finalize import finalize
from orchestrator.supervisor.give_up import giving_up
from orchestrator.supervisor.interruption import Interruption, interruptible
from orchestrator.supervisor.supervisor import SessionExit, supervise
from search_spaces.layers import flatten
from search_spaces.loader import DEFAULT_RECIPE, ResolvedRecipe, load_recipe
from search_spaces.schema import SAMPLERS, Recipe
from trials.cli import run_command
from trials.config import ALL_LINEAR
from trials.console.terminal import survives_hangup
from trials.console.unexpected import explained
from trials.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_GAVE_UP,
    EXIT_INTERRUPTED,
    InputError,
    SearchBroken,
    TuningError,
)
from trials.model.architecture import model_shape
from trials.sources.source import with_home
from trials.system.disk_full import disk_full_in, is_disk_full, refuse_unwritable
from trials.system.gpus import gpu_count


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m orchestrator.search", description="Search for the best QLoRA adapter that fits the budget."
    )
    arguments.add_argument("space", nargs="?", help=f"a recipe's name (default: {DEFAULT_RECIPE}), or a YAML file")
    length = arguments.add_mutually_exclusive_group()
    length.add_argument("--budget", metavar="9h", help="wall clock from now to the exported adapter")
    length.add_argument("--until", metavar="07:00", help="the same, as a time of day")
    arguments.add_argument(
        "--out", type=with_home, metavar="DIR", help="run folder, or s3://... (default: runs/<space>-<date>-<time>)"
    )
    arguments.add_argument(
        "--gpus-per-trial",
        type=int,
        metavar="N",
        help="default: 1, or 0 where there is no GPU; 2 or more: together",
    )
    arguments.add_argument("--trials", type=int, metavar="N", help="at most so many trained configurations")
    arguments.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="key=value", help="override anything in the recipe"
    )
    arguments.add_argument("--resume", type=with_home, metavar="DIR", help="go on with a run folder")
    arguments.add_argument("--plan", action="store_true", help="say what would happen, run nothing")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    started = datetime.now(UTC)
    return run_command(lambda: _command(parser().parse_args(argv), started))


def _command(arguments: argparse.Namespace, started: datetime) -> int:
    if arguments.plan:
        return _plan(_job(arguments, started), started)
    with survives_hangup():
        return _search(_job(arguments, started))


@dataclass(frozen=True)
class _Job:
    """A search to run; `folder` is None for a new search, as its run folder is created after all input is checked."""

    search: Search
    sizes: DataSizes
    folder: RunDir | None
    out: str


def _job(arguments: argparse.Namespace, started: datetime) -> _Job:
    return _resumed(arguments, started) if arguments.resume else _new(arguments, started)


def _search(job: _Job) -> int:
    raise_if_blocked(decisive_checks(job.search))
    folder = job.folder or create_run(job.out)
    with exclusive_access(folder), disk_full_in(folder.path), interruptible() as interruption:
        log_command(folder)
        folder.write_search(job.search)
        upload(folder, "search.json")  # so that it can be resumed even if it is refused now
        clock = SteadyClock(is_time_of_day=job.search.deadline.is_time_of_day)
        ended = _ended(folder, clock, interruption)
        if ended is SessionExit.REFUSED:
            return EXIT_BAD_INPUT
        with interruption.finishing():
            code = finalize(folder, clock, interrupted=ended is not SessionExit.OVER)
            if ended is SessionExit.GAVE_UP:
                sys.stderr.write(f"error: {giving_up(folder, clock())}\n")
                code = EXIT_GAVE_UP
            upload(folder)
        if (place := address_of(folder)) != str(folder.path):
            print(f"all of it is on {place}")
        return EXIT_INTERRUPTED if interruption.is_asked else code


def _ended(folder: RunDir, clock: SteadyClock, interruption: Interruption) -> SessionExit:
    """Run the search's sessions, and return how they ended.

    Most errors are printed and count as a broken session, because what it left is still worth an export.
    """
    try:
        return supervise(folder, clock, _say, interruption)
    except SearchBroken as error:
        sys.stderr.write(f"error: {error}\n")
    except Exception as error:
        if isinstance(error, TuningError) or is_disk_full(error):
            raise
        sys.stderr.write(f"error: {explained(error)}\n")
    return SessionExit.BROKEN


def _plan(job: _Job, started: datetime) -> int:
    """Print what would happen and what prevents it; return the exit code, as for bad input if it is impossible."""
    trials = None if job.folder is None else job.folder.read_trials()
    throughput = None if trials is None else ThroughputModel.from_records(trials.records, job.search.regrouped)
    print(describe(job.search, job.sizes, throughput, None if throughput is None else started), flush=True)
    if trials is not None and trials.lines():
        print("\n  ".join(["damaged, and left out or set aside by --resume:", *trials.lines()]), flush=True)
    found = run_checks(job.search, job.out, forecast_search(job.search, throughput, started).disk_gib)
    print(preflight_lines(found))
    return EXIT_BAD_INPUT if any(finding.level is Severity.IMPOSSIBLE for finding in found) else EXIT_DONE


def _new(arguments: argparse.Namespace, started: datetime) -> _Job:
    limits = [f"search.trials={arguments.trials}"] if arguments.trials is not None else []
    budget = [f"search.budget={arguments.budget}"] if arguments.budget is not None else []
    resolved = load_recipe(arguments.space or DEFAULT_RECIPE, [*arguments.set, *limits, *budget])
    recipe, sources = _pinned(resolved)
    if arguments.until is not None:
        deadline = from_until(arguments.until, recipe.search.reserve, started)
    else:
        deadline = from_budget(recipe.search.budget, recipe.search.reserve, started)
    gpus = _gpus_per_trial(arguments.gpus_per_trial)
    ranks = max(1, arguments.gpus_per_trial or gpus)
    refuse_small_batches(recipe, ranks)
    _refuse_sampler(recipe)
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    out = arguments.out or f"runs/{recipe.name.replace('/', '-')}-{stamp}"
    refuse_taken_place(out)
    recipe = _with_named_targets(recipe)
    sizes = _check_input(recipe)
    base = model_shape(recipe.model.name, recipe.model.revision)
    search = Search(recipe, sources, deadline, gpus, sizes.full_tokens, sizes.data, ranks=ranks, base=base)
    return _Job(search, sizes, None, out)


def _resumed(arguments: argparse.Namespace, started: datetime) -> _Job:
    if arguments.space or arguments.set or arguments.out or arguments.gpus_per_trial is not None:
        raise InputError(
            "--resume goes on with what the run folder says: leave out SPACE, --set, --out and --gpus-per-trial. "
            "Allowed beside it are --budget, --until, --trials and --plan."
        )
    folder = open_run(arguments.resume)
    if not arguments.plan:
        refuse_unwritable(folder.path)
    search = folder.read_search()
    if arguments.trials is not None:
        settings = search.recipe.search.model_copy(update={"trials": arguments.trials})
        search = replace(search, recipe=search.recipe.model_copy(update={"search": settings}))
    reserve = search.recipe.search.reserve
    # A new budget moves the end; the start stays as recorded.
    if arguments.budget is not None:
        search = replace(search, deadline=_moved(search.deadline, from_budget(arguments.budget, reserve, started)))
    elif arguments.until is not None:
        search = replace(search, deadline=_moved(search.deadline, from_until(arguments.until, reserve, started)))
    elif search.deadline.training_seconds_left(started) <= 0 and (folder.export / "manifest.json").exists():
        raise InputError(
            f"the budget of this search ended at {search.deadline.ends:%Y-%m-%d %H:%M} UTC. "
            "Give it more time by --budget or --until, or export what there is: "
            f"python -m orchestrator.export {shlex.quote(address_of(folder))}"
        )
    _refuse_sampler(search.recipe)
    sizes = _check_input(search.recipe)
    _refuse_other_data(search, sizes)
    search = replace(search, base=search.shape)  # run folders of earlier versions lack it
    return _Job(search, sizes, folder, arguments.resume)


def _moved(deadline: Deadline, to: Deadline) -> Deadline:
    """Return the deadline with the end of `to`; it keeps its start, and its reserve, which was measured already."""
    return replace(deadline, ends=to.ends, is_time_of_day=to.is_time_of_day)


def _pinned(resolved: ResolvedRecipe) -> tuple[Recipe, Mapping[str, str]]:
    """Return the recipe with the commits that its names on the hub stand for now, and the sources of all settings."""
    from trials.sources.pinning import pinned_data, pinned_model

    recipe = resolved.recipe
    pinned = recipe.model_copy(update={"data": pinned_data(recipe.data), "model": pinned_model(recipe.model)})
    before, after = flatten(recipe.model_dump()), flatten(pinned.model_dump())
    found = {key: "the hub, when the search began" for key, value in after.items() if before[key] != value}
    return pinned, {**resolved.sources, **found}


def _refuse_sampler(recipe: Recipe) -> None:
    """Raise `RecipeError` if the sampler can't be made; Optuna is loaded for its own samplers only."""
    if recipe.search.sampler != SAMPLERS[0]:
        from orchestrator.sampling.samplers import make_sampler

        make_sampler(recipe.search, recipe.search.seed)


def _with_named_targets(recipe: Recipe) -> Recipe:
    """Return the recipe with the names of this base model's layers in place of `all-linear`."""
    from trials.model.loading import named_targets

    if ALL_LINEAR not in recipe.all_targets():
        return recipe
    return recipe.with_targets(lambda targets: named_targets(recipe.model, targets))


def _refuse_other_data(search: Search, sizes: DataSizes) -> None:
    """Raise `InputError` if the data or the tokenizer differ from those that the search began with.

    Losses on other rows, or on rows tokenised otherwise, can't be compared with those on record.
    """
    before = search.data.get("fingerprint")
    if before is not None and before != sizes.data["fingerprint"]:
        raise InputError(
            "the data or the tokenizer has changed since this search began, so new losses couldn't be compared with "
            "those on record. Restore the files that search.json names, or begin a new search."
        )


def _gpus_per_trial(asked: int | None) -> int:
    """Return the GPUs of one trial: as asked, else one if there are GPUs. Raises `InputError` if there are too few.

    On a machine without any, processes on the CPU stand in for two or more.
    """
    if asked is not None and asked < 0:
        raise InputError(f"--gpus-per-trial {asked} is negative. Give 0, 1 or more.")
    here = gpu_count()
    if asked is None:
        return int(here > 0)
    if named_cluster() is None:
        if asked == 1 and not here:
            raise InputError("--gpus-per-trial 1: this machine has no NVIDIA GPU. Give 0, or join a Ray cluster.")
        if here and asked > here:
            raise InputError(
                f"--gpus-per-trial {asked}: this machine has {here} NVIDIA GPU(s). Give at most as many, or join a "
                "Ray cluster."
            )
        return asked if here else 0
    return asked


def _check_input(recipe: Recipe) -> DataSizes:
    """Check the base model, read and tokenise all rows, and return their sizes.

    So errors in them are reported before a model loads or Ray starts.
    """
    from trials.data.dataset import load_data
    from trials.model.loading import check_base, check_targets, load_tokenizer, refuse_unknown_tokens

    tokenizer = load_tokenizer(recipe.model)
    check_base(recipe.model)
    check_targets(recipe.model, recipe.all_targets())
    data = load_data(recipe.data, tokenizer)
    refuse_unknown_tokens(recipe.model, data, tokenizer)
    return DataSizes.of(recipe, data)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
