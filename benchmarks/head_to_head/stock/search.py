"""The stock search: Ray Tune with OptunaSearch (TPE) and ASHA over TRL trials, as a careful user writes it today.

    python -m benchmarks.head_to_head.stock.search REQUEST.json SECONDS SEED OUT

It ends before SECONDS have passed since this process began, and leaves the adapter with the lowest loss on EVAL in
OUT/best. It gets the recipe's space, length and number of evaluations; like most such scripts, it has no starting
points.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.head_to_head.stock.trial import POINT_FILE, Fit, limit_memory, load_rows, read_request, train
from orchestrator.sampling.distributions import decode_all, distributions
from search_spaces.schema import Recipe
from trials.schedule import full_tokens
from trials.system.damage import DamagedFile, read_value
from trials.system.files import in_place

_METRIC = "best_eval_loss"
_REDUCTION_FACTOR = 3
_END_SECONDS = 8.0
"""Kept for Tune's end and for copying the best adapter."""
_FIRST_RUNG_SHARE = 0.9
"""Of the rows at the first evaluation: batches of other sizes are evaluated some rows earlier."""
_CPUS_OF_A_GPU_TRIAL = 1


def tune_trial(config: dict[str, Any]) -> None:
    """Train one Tune trial, in the process that Tune starts for it."""
    import torch
    from ray import tune

    recipe, fit = read_request(Path(config["request"]))
    seeded = recipe.search.model_copy(update={"seed": config["seed"]})
    recipe = recipe.model_copy(update={"search": seeded})
    limit_memory(fit)
    if not torch.cuda.is_available():
        torch.set_num_threads(recipe.machine.cpu_threads or 1)
    values = decode_all({name: config[name] for name in recipe.space}, recipe.space)
    folder = Path(config["out"]) / "trials" / tune.get_context().get_trial_id()
    train(recipe, recipe.hyperparameters_with(values), fit, folder, tune.report)


def search(request: Path, seconds: float, seed: int, out: Path) -> None:
    """Search until `seconds` after this process began, less what its end takes."""
    import ray
    from ray import tune

    out.mkdir(parents=True, exist_ok=True)
    recipe, fit = read_request(request)
    _, data = load_rows(recipe)  # tokenises them once, for all trials
    rows = round(full_tokens(recipe.hyperparameters, data.train.epoch) / data.train.epoch.row_tokens)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    left = seconds - _since_start() - _END_SECONDS
    tune.Tuner(
        tune.with_resources(tune_trial, _resources(recipe, fit, int(ray.cluster_resources().get("GPU", 0)))),
        param_space={"request": str(request.absolute()), "out": str(out.absolute()), "seed": seed},
        tune_config=tune.TuneConfig(
            search_alg=_searcher(recipe, seed),
            scheduler=_scheduler(rows, recipe.evaluation.evaluations),
            num_samples=-1,
            max_concurrent_trials=fit.trials_at_once,
            time_budget_s=max(1.0, left),
            reuse_actors=True,  # the next trial needs no new process, which would import torch and TRL again
        ),
        run_config=tune.RunConfig(storage_path=str((out / "tune").absolute()), name="stock", verbose=0),
    ).fit()
    _keep_best(out)


def _resources(recipe: Recipe, fit: Fit, gpus: int) -> dict[str, float]:
    if gpus:
        return {"gpu": 1 / fit.trials_at_once, "cpu": _CPUS_OF_A_GPU_TRIAL}
    return {"cpu": recipe.machine.cpu_threads or 1}


def _searcher(recipe: Recipe, seed: int) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(distributions(recipe.space), metric=_METRIC, mode="min", seed=seed)


def _scheduler(full_rows: int, evaluations: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        metric=_METRIC,
        mode="min",
        time_attr="rows",
        max_t=full_rows,
        grace_period=max(1, int(_FIRST_RUNG_SHARE * full_rows / evaluations)),
        reduction_factor=_REDUCTION_FACTOR,
    )


def _keep_best(out: Path) -> None:
    """Copy the best adapter of all trials to OUT/best."""
    found = []
    for folder in sorted((out / "trials").glob("*")):
        adapter = in_place(folder / "adapter")
        try:
            point = read_value(adapter / POINT_FILE)
        except DamagedFile:
            continue
        if point is not None:
            found.append((point["eval_loss"], adapter))
    if not found:
        sys.stderr.write("no trial was evaluated before its time was over\n")
        return
    loss, adapter = min(found)
    shutil.copytree(adapter, out / "best", copy_function=shutil.copy)  # with the time of the copy
    print(f"{len(found)} trials were evaluated; the best has eval loss {loss:.4f}: {adapter}", flush=True)


def _since_start() -> float:
    return time.time() - float(psutil.Process(os.getpid()).create_time())


def main(argv: Sequence[str]) -> None:
    """Run the search."""
    request, seconds, seed, out = argv
    search(Path(request), float(seconds), int(seed), Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
