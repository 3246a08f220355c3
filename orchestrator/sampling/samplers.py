"""Samplers by name: Optuna's own, and any class of its interface, such as OptunaHub's."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

from search_spaces.schema import SearchSettings
from trials.errors import RecipeError

FREEZE_THAW = "freeze_thaw"


def _gp(seed: int, **given: Any) -> BaseSampler:
    return GPSampler(**{"seed": seed, "warn_independent_sampling": False, **given})


def _cmaes(seed: int, **given: Any) -> BaseSampler:
    return CmaEsSampler(**{"seed": seed, "warn_independent_sampling": False, **given})


def _tpe(seed: int, **given: Any) -> BaseSampler:
    return TPESampler(**{"seed": seed, **given})


def _random(seed: int, **given: Any) -> BaseSampler:
    return RandomSampler(**{"seed": seed, **given})


_NAMED: Mapping[str, Callable[..., BaseSampler]] = {"tpe": _tpe, "gp": _gp, "cmaes": _cmaes, "random": _random}


def make_sampler(settings: SearchSettings, seed: int) -> BaseSampler:
    """Return the sampler that the settings name, which isn't ours.

    Raises `RecipeError` if it can't be imported, doesn't take the arguments, or isn't one of Optuna's interface.
    """
    make = _NAMED.get(settings.sampler) or _imported(settings.sampler)
    seeded = {"seed": seed} if _takes_seed(make) else {}
    try:
        sampler = make(**{**seeded, **settings.sampler_arguments})
    except Exception as error:
        raise RecipeError(
            f"search.sampler: {settings.sampler} with search.sampler_arguments {dict(settings.sampler_arguments)} "
            f"raises {type(error).__name__}: {error}. Give arguments that it takes"
        ) from error
    if not isinstance(sampler, BaseSampler):
        raise RecipeError(
            f"search.sampler: {settings.sampler} gives a {type(sampler).__name__}, which is no "
            f"optuna.samplers.BaseSampler. Name a class that is"
        )
    return sampler


def _takes_seed(make: Callable[..., Any]) -> bool:
    try:
        return "seed" in inspect.signature(make).parameters
    except ValueError:  # of some classes in C, nobody knows
        return False


def _imported(name: str) -> Callable[..., Any]:
    module, _, member = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), member)
    except Exception as error:
        raise RecipeError(
            f"search.sampler: {name} can't be imported: {type(error).__name__}: {error}. Install its package, or name "
            f"another module:Class"
        ) from error
    if not callable(found):
        raise RecipeError(f"search.sampler: {name} is a {type(found).__name__}, no class. Name a module:Class")
    return found  # type: ignore[no-any-return]
