"""Placement of trials: number of workers and of concurrent trials, from the recipe and the machines. Imports no Ray."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from orchestrator.state.search import Placement, Search
from search_spaces.schema import Choices, Recipe
from trials.config import Machine
from trials.engine.support import unsupported_reason
from trials.errors import ModelError, RecipeError
from trials.model.architecture import ARCHITECTURES
from trials.model.memory_estimate import sizes_of
from trials.model.memory_plan import MOST_TOKENS, ModelSizes

FEWEST_SLOTS, MOST_SLOTS = 2, 8
_ITEMSIZE = 2
"""Bytes of a number in a matrix product on a GPU."""
_DECISIVE = ("use_dora", "neftune_noise_alpha", "target_modules")
"""Hyperparameters that decide whether the engine supports a configuration (`unsupported_reason`)."""


def plan_placement(search: Search, *, gpus: int, cores: Sequence[int], gpus_each: int = 1) -> Placement:
    """Return the number of workers and of trial slots.

    - A worker with an engine has a GPU, or `cpu_threads` cores, and as many slots as fill its micro-batches.
    - If TRL trains, a worker has one slot, and `gpus_per_trial` GPUs or a core.
    - If several processes train one trial, each worker group counts as a worker with one slot.

    `gpus` is the total of all machines. `gpus_each` is the smallest number on a machine that has any. `cores` has one
    entry per machine. 0 slots: there are too few GPUs for one trial. There are never more slots than the search may
    have trials.
    """
    on_gpu, by_trl = search.gpus_per_trial > 0, trl_reason(search) is not None
    if search.ranks > 1:
        on_cpu = [groups_on_cpu(search, each) for each in cores]
    else:
        on_cpu = [workers_on_cpu(search.recipe.machine, each, by_trl=by_trl) for each in cores]
    workers = gpus // search.gpus_per_trial if on_gpu else sum(on_cpu)
    if by_trl or search.ranks > 1 or not workers:
        workers = min(workers, _asked(search, workers))
        return Placement(workers, workers)
    most_ranks = gpus_each if on_gpu else min(on_cpu)
    slots = _asked(search, workers * _slots_of_one_engine(search))
    return Placement(min(workers, slots), slots, most_ranks)


def _asked(search: Search, otherwise: int) -> int:
    """Return the recipe's concurrent trials, or `otherwise` if not set; at most the recipe's number of trials."""
    settings = search.recipe.search
    asked = settings.concurrent_trials or otherwise
    return min(asked, settings.trials or asked)


def workers_on_cpu(machine: Machine, cores: int, *, by_trl: bool) -> int:
    """Return the number of workers on a machine with so many cores: under TRL one per core.

    An engine has `cpu_threads` cores, or all of them if that is not set. Matrix products of a small model gain nothing
    from a second thread. They lose a lot if a thread has to wait for its core. So concurrent trials have a process
    each.
    """
    if by_trl:
        return cores
    return 1 if machine.cpu_threads is None else max(1, cores // machine.cpu_threads)


def groups_on_cpu(search: Search, cores: int) -> int:
    """Return the number of worker groups on a machine with so many cores."""
    return max(1, cores // (search.ranks * (search.recipe.machine.cpu_threads or cores)))


def trl_reason(search: Search) -> str | None:
    """Return the reason why TRL trains the trials of this search; None: engines train them."""
    if search.recipe.machine.engine == "trl":
        return "the recipe asks for TRL"
    return _why_not_all_configurations(search)


def slots_per_worker(step_tokens: float, micro_step_tokens: int) -> int:
    """Return the number of trials that fill a micro-batch while one of them is evaluated, between 2 and 8.

    More concurrent trials would delay results, from which the scheduler learns. `step_tokens` are the tokens of one
    trial's optimizer step.
    """
    return min(max(math.ceil(micro_step_tokens / step_tokens) + 1, FEWEST_SLOTS), MOST_SLOTS)


def _slots_of_one_engine(search: Search) -> int:
    if not search.gpus_per_trial:
        return 1
    train = search.data.get("train")
    if train is None or _is_captured(search):  # `train` None: a run folder of a version that didn't count rows
        return FEWEST_SLOTS
    planned = slots_per_worker(smallest_batch(search.recipe) * train["tokens"] / train["rows"], MOST_TOKENS)
    return min(planned, search.slots_of_use or planned)


def _is_captured(search: Search) -> bool:
    """Return whether the engine captures training passes: then each has one trial, and more at once gain nothing."""
    sizes = sizes_on_gpu(search)
    return sizes is not None and search.recipe.machine.cuda_graphs and sizes.is_captured


def sizes_on_gpu(search: Search) -> ModelSizes | None:
    """Return the base model's sizes on a GPU; None: its config can't be read, or its layers aren't Llama's."""
    try:
        base = search.shape
    except ModelError:
        return None
    if base.model_type not in ARCHITECTURES:
        return None
    return sizes_of(base, _ITEMSIZE, is_quantized=search.recipe.model.quantization == "nf4")


def refuse_small_batches(recipe: Recipe, ranks: int) -> None:
    """Raise `RecipeError` if a trial of this recipe may have fewer rows in an optimizer step than processes."""
    smallest = smallest_batch(recipe)
    if smallest < ranks:
        raise RecipeError(
            f"effective_batch {smallest} can't be divided over {ranks} GPUs of one trial. Give at least {ranks} rows "
            "everywhere in the space and the starting points, or a smaller --gpus-per-trial."
        )


def smallest_batch(recipe: Recipe) -> int:
    """Return the smallest effective batch, in rows, that a trial of this recipe can have."""
    starts = [values["effective_batch"] for values in recipe.start.values() if "effective_batch" in values]
    return int(min([*_values(recipe, "effective_batch"), *starts]))


def _why_not_all_configurations(search: Search) -> str | None:
    """Return the reason why the engine can't run one of the search's configurations; None if it can run all.

    If it can't run one, TRL runs all. An engine's process can't also hold TRL's base model and random state, and the
    engine's GPU has no memory for another process.
    """
    recipe = search.recipe
    proposed = itertools.product(*(_values(recipe, name) for name in _DECISIVE))
    suggestions = [dict(zip(_DECISIVE, values, strict=True)) for values in proposed]
    suggestions += [recipe.start_values(name) for name in recipe.start]
    reasons = [unsupported_reason(recipe.trial_config(values), search.ranks, search.base) for values in suggestions]
    found = next((reason for reason in reasons if reason is not None), None)
    return f"some configurations are not for it: {found}" if found and None in reasons else found


def _values(recipe: Recipe, name: str) -> list[Any]:
    """Return the values that a hyperparameter can have in the search; for a range, its two ends."""
    dimension = recipe.space.get(name)
    if dimension is None:
        return [getattr(recipe.hyperparameters, name)]
    return list(dimension.choices) if isinstance(dimension, Choices) else [dimension.low, dimension.high]
