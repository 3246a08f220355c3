"""What of a stock trial fits the machine: its micro-batch, and how many trials side by side.

    python -m benchmarks.head_to_head.stock.fit RECIPE.json GPU_MEMORY_GIB|none OUT

A careful user finds this out before the search, so it isn't part of the wall clock. The largest adapter and batch of
the space are tried on the longest training rows. On a CPU there is nothing to try: whole batches, a trial for every
`machine.cpu_threads` cores.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.head_to_head.stock.trial import Fit, Length, limit_memory, load_model, load_rows, make_trainer
from search_spaces.schema import Choices, Recipe
from trials.config import Hyperparameters
from trials.model.memory_plan import MOST_OF_GPU
from trials.system.files import write_json
from trials.system.oom import is_out_of_memory

MOST_AT_ONCE = 4
"""Trials on one GPU; more of them share its time without getting more done."""
_STEPS = 2


def largest(recipe: Recipe) -> Hyperparameters:
    """Return the hyperparameters of the space that need most memory."""
    values = {}
    for name in ("lora_rank", "effective_batch"):
        dimension = recipe.space.get(name)
        if dimension is not None:
            values[name] = max(dimension.choices) if isinstance(dimension, Choices) else int(dimension.high)  # type: ignore[type-var]
    targets = recipe.space.get("target_modules")
    if isinstance(targets, Choices):
        values["target_modules"] = max(targets.choices, key=lambda names: len(names) if isinstance(names, list) else 0)
    return recipe.hyperparameters_with(values)


def ways(batch_rows: int) -> Iterator[tuple[int, bool]]:
    """Return micro-batches and whether activations are recomputed, the fastest first."""
    for recomputed in (False, True):
        rows = batch_rows
        while rows >= 1:
            yield rows, recomputed
            rows //= 2


def at_once(allowed_gib: float, peak_gib: float) -> int:
    """Return how many trials side by side have the memory that one needs."""
    return max(1, min(MOST_AT_ONCE, int(allowed_gib / peak_gib)))


def fit_cpu(recipe: Recipe) -> Fit:
    """Return what fits a CPU."""
    cores = len(os.sched_getaffinity(0))
    return Fit(max(1, cores // (recipe.machine.cpu_threads or 1)), None, False, None, None)


def fit_gpu(recipe: Recipe, allowed_gib: float | None, out: Path) -> Fit:
    """Return what fits the GPU: the first of `ways` that does. Raises RuntimeError if none does."""
    import torch

    base = None
    if recipe.model.quantization == "nf4":
        load_model(recipe, None).save_pretrained(out / "base")
        base = str((out / "base").absolute())
    whole = torch.cuda.get_device_properties(0).total_memory / 2**30
    allowed = allowed_gib or MOST_OF_GPU * whole
    for rows, recomputed in ways(largest(recipe).effective_batch):
        alone = Fit(1, rows, recomputed, base, allowed)
        peak = _peak_gib(recipe, alone, out / "trial")
        if peak is not None:
            return Fit(at_once(allowed, peak), rows, recomputed, base, allowed)
    raise RuntimeError("not even one row fits with gradient checkpointing")


def _peak_gib(recipe: Recipe, fit: Fit, folder: Path) -> float | None:
    """Return the memory that a short trial reserves; None if that isn't there."""
    import torch

    limit_memory(fit)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    hyperparameters = largest(recipe)
    try:
        trainer = make_trainer(recipe, hyperparameters, fit, Length(_STEPS, _STEPS), folder, [])
        _, data = load_rows(recipe)
        rows = data.train.longest_rows(hyperparameters.effective_batch * _STEPS * data.train.longest)
        trainer.train_dataset = _dataset(rows)
        trainer.train()
    except Exception as error:
        if is_out_of_memory(error):
            return None
        raise
    return float(torch.cuda.max_memory_reserved()) / 2**30


def _dataset(rows: Sequence[Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in rows])


def main(argv: Sequence[str]) -> None:
    """Find out, and write OUT/fit.json."""
    import torch

    recipe = Recipe.model_validate_json(Path(argv[0]).read_text(encoding="utf-8"))
    allowed = None if argv[1] == "none" else float(argv[1])
    out = Path(argv[2])
    found = fit_gpu(recipe, allowed, out) if torch.cuda.is_available() else fit_cpu(recipe)
    write_json(out / "fit.json", asdict(found))
    print(found, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
