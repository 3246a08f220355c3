"""How many trials run at once, and in how many engines: decided from the recipe and the machines, without Ray."""

from __future__ import annotations

import itertools
import math
from typing import Any

from orchestrator.run_folder import Placement, Search
from search_spaces.schema import Choices, Recipe
from trials.config import Machine
from trials.engine.support import why_not

FEWEST_SLOTS, MOST_SLOTS = 2, 8
MICRO_STEP_TOKENS_ON_CPU = 2048
_DECISIVE = ("use_dora", "neftune_noise_alpha", "target_modules")
"""The hyperparameters that `why_not` looks at."""


def place(search: Search, *, gpus: int, cores: int, machines: int = 1) -> Placement:
    """One engine per GPU, or per machine where trials use none; without engines a trial per GPU or per core.

    `gpus` and `cores` are those of all machines together. No slots: there aren't enough GPUs for one trial.
    """
    limit = search.recipe.search.concurrent_trials
    if why_no_engine(search) is not None:
        slots = gpus // search.gpus_per_trial if search.gpus_per_trial else cores
        return Placement(0, slots if limit is None else min(limit, slots))
    engines = gpus if search.gpus_per_trial else machines
    if not engines:
        return Placement(0, 0)
    slots = engines * _slots_of_one_engine(search) if limit is None else limit
    return Placement(min(engines, slots), slots)


def why_no_engine(search: Search) -> str | None:
    """Why every trial of this search has a process of its own, in a sentence; None: engines hold them."""
    if search.recipe.machine.engine == "trl":
        return "the recipe asks for TRL"
    if search.gpus_per_trial > 1:
        return "an engine has one GPU"
    return _why_no_configuration(search.recipe)


def slots_per_engine(step_tokens: float, micro_step_tokens: int) -> int:
    """Trials that fill a micro-step while one of them is evaluated, and no more.

    What a searcher learns from ended trials is worth more than trials side by side. `step_tokens` are those of one
    trial's optimizer step.
    """
    return min(max(math.ceil(micro_step_tokens / step_tokens) + 1, FEWEST_SLOTS), MOST_SLOTS)


def micro_step_tokens(machine: Machine, *, on_gpu: bool) -> int:
    """Tokens that the engine takes through the base at once, about: a core is busy with fewer than a GPU."""
    return machine.micro_batch_tokens if on_gpu else min(machine.micro_batch_tokens, MICRO_STEP_TOKENS_ON_CPU)


def _slots_of_one_engine(search: Search) -> int:
    train = search.data.get("train")
    if train is None:  # a run folder from before rows were counted
        return FEWEST_SLOTS
    step_tokens = _smallest_batch(search.recipe) * train["tokens"] / train["rows"]
    return slots_per_engine(step_tokens, micro_step_tokens(search.recipe.machine, on_gpu=search.gpus_per_trial > 0))


def _smallest_batch(recipe: Recipe) -> int:
    """Rows of the smallest effective batch that a trial of this recipe can have."""
    starts = [values["effective_batch"] for values in recipe.start.values() if "effective_batch" in values]
    return int(min([*_values(recipe, "effective_batch"), *starts]))


def _why_no_configuration(recipe: Recipe) -> str | None:
    """A reason why the engine can run none of a recipe's configurations; None if it can run one of them."""
    proposed = itertools.product(*(_values(recipe, name) for name in _DECISIVE))
    suggestions = [dict(zip(_DECISIVE, values, strict=True)) for values in proposed]
    suggestions += [recipe.start_values(name) for name in recipe.start]
    reasons = [why_not(recipe.trial_config(values)) for values in suggestions]
    return None if None in reasons else reasons[0]


def _values(recipe: Recipe, name: str) -> list[Any]:
    """The values that the search gives a hyperparameter; of a range its ends."""
    dimension = recipe.space.get(name)
    if dimension is None:
        return [getattr(recipe.hyperparameters, name)]
    return list(dimension.choices) if isinstance(dimension, Choices) else [dimension.low, dimension.high]
