"""How many trials run at once, and in how many engines: decided from the recipe and the machines, without Ray."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from orchestrator.state.run_dir import Placement, Search
from search_spaces.schema import Choices, Recipe
from trials.config import Machine
from trials.engine.support import unsupported_reason
from trials.errors import RecipeError
from trials.model.memory_plan import MOST_TOKENS

FEWEST_SLOTS, MOST_SLOTS = 2, 8
_DECISIVE = ("use_dora", "neftune_noise_alpha", "target_modules")
"""The hyperparameters that `unsupported_reason` looks at."""


def plan_placement(search: Search, *, gpus: int, cores: Sequence[int], gpus_each: int = 1) -> Placement:
    """One engine per GPU, or where trials use none per `cpu_threads` cores; without engines a trial per GPU or core.

    `gpus` are those of all machines together, `gpus_each` of each that has any, `cores` those of each. No slots:
    there aren't enough GPUs for one trial. Where several processes train a trial together, a group of them stands for
    an engine, and holds one trial at a time. Never more slots than the search may have trials.
    """
    if search.ranks > 1:
        groups = gpus // search.ranks if search.gpus_per_trial else sum(groups_on_cpu(search, each) for each in cores)
        groups = min(groups, _asked(search, groups))
        return Placement(groups, groups)
    if trl_reason(search) is not None:
        slots = gpus // search.gpus_per_trial if search.gpus_per_trial else sum(cores)
        return Placement(0, min(slots, _asked(search, slots)))
    most_ranks = gpus_each if search.gpus_per_trial else min(engines_on_cpu(search.recipe.machine, c) for c in cores)
    engines = gpus if search.gpus_per_trial else sum(engines_on_cpu(search.recipe.machine, each) for each in cores)
    if not engines:
        return Placement(0, 0)
    slots = _asked(search, engines * _slots_of_one_engine(search))
    return Placement(min(engines, slots), slots, most_ranks)


def _asked(search: Search, otherwise: int) -> int:
    """How many trials the recipe wants at once, or `otherwise` if it doesn't say, but no more than it wants at all."""
    settings = search.recipe.search
    asked = settings.concurrent_trials or otherwise
    return min(asked, settings.trials or asked)


def engines_on_cpu(machine: Machine, cores: int) -> int:
    """How many engines share the cores of a machine.

    A small model's products gain nothing from a second thread and lose a lot to one that has to wait for its core, so
    trials side by side have a process each. Without `cpu_threads` all cores are one engine's.
    """
    return 1 if machine.cpu_threads is None else max(1, cores // machine.cpu_threads)


def groups_on_cpu(search: Search, cores: int) -> int:
    """How many groups of processes share the cores of a machine."""
    return max(1, cores // (search.ranks * (search.recipe.machine.cpu_threads or cores)))


def trl_reason(search: Search) -> str | None:
    """Why TRL trains the trials of this search, in a sentence; None: engines do."""
    if search.recipe.machine.engine == "trl":
        return "the recipe asks for TRL"
    return _why_not_all_configurations(search)


def slots_per_engine(step_tokens: float, micro_step_tokens: int) -> int:
    """Trials that fill a micro-step while one of them is evaluated, and no more.

    What a searcher learns from ended trials is worth more than trials side by side. `step_tokens` are those of one
    trial's optimizer step.
    """
    return min(max(math.ceil(micro_step_tokens / step_tokens) + 1, FEWEST_SLOTS), MOST_SLOTS)


def _slots_of_one_engine(search: Search) -> int:
    if not search.gpus_per_trial:
        return 1
    train = search.data.get("train")
    if train is None:  # a run folder from before rows were counted
        return FEWEST_SLOTS
    return slots_per_engine(smallest_batch(search.recipe) * train["tokens"] / train["rows"], MOST_TOKENS)


def refuse_small_batches(recipe: Recipe, ranks: int) -> None:
    """Raises `RecipeError` if a trial of this recipe may have fewer rows in a step than processes."""
    smallest = smallest_batch(recipe)
    if smallest < ranks:
        raise RecipeError(
            f"effective_batch {smallest} can't be divided over {ranks} GPUs of one trial. Give at least {ranks} rows "
            "everywhere in the space and the starting points, or a smaller --gpus-per-trial."
        )


def smallest_batch(recipe: Recipe) -> int:
    """Rows of the smallest effective batch that a trial of this recipe can have."""
    starts = [values["effective_batch"] for values in recipe.start.values() if "effective_batch" in values]
    return int(min([*_values(recipe, "effective_batch"), *starts]))


def _why_not_all_configurations(search: Search) -> str | None:
    """A reason why the engine can't run one of a search's configurations; None if it can run them all.

    Then TRL runs all of them: a process with an engine has no place for TRL's base model and random state, nor has the
    engine's GPU for another process.
    """
    recipe = search.recipe
    proposed = itertools.product(*(_values(recipe, name) for name in _DECISIVE))
    suggestions = [dict(zip(_DECISIVE, values, strict=True)) for values in proposed]
    suggestions += [recipe.start_values(name) for name in recipe.start]
    reasons = [unsupported_reason(recipe.trial_config(values), search.ranks, search.base) for values in suggestions]
    found = next((reason for reason in reasons if reason is not None), None)
    return f"some configurations are not for it: {found}" if found and None in reasons else found


def _values(recipe: Recipe, name: str) -> list[Any]:
    """The values that the search gives a hyperparameter; of a range its ends."""
    dimension = recipe.space.get(name)
    if dimension is None:
        return [getattr(recipe.hyperparameters, name)]
    return list(dimension.choices) if isinstance(dimension, Choices) else [dimension.low, dimension.high]
