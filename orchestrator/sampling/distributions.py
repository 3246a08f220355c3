"""Search space of a recipe as Optuna's distributions, and hyperparameters as values of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.schema import Choices, Dimension, is_integer

_SEPARATOR = "+"


def distributions(space: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    """Return Optuna's distributions for the whole space."""
    return {name: distribution(name, dimension) for name, dimension in space.items()}


def distribution(name: str, dimension: Dimension) -> BaseDistribution:
    """Return Optuna's distribution for one dimension of the space."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution([encode(choice, dimension) for choice in dimension.choices])
    if is_integer(name):
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def encode(value: Any, dimension: Dimension) -> Any:
    """Return a hyperparameter's value for a study: only scalars, so a list of modules becomes q_proj+v_proj."""
    if isinstance(dimension, Choices) and isinstance(value, list | tuple):
        return _SEPARATOR.join(value)
    return value


def decode(value: Any, dimension: Dimension) -> Any:
    """Return a value of the study as the recipe has it."""
    if isinstance(dimension, Choices):
        return next(choice for choice in dimension.choices if encode(choice, dimension) == value)
    return value


def encode_all(values: Mapping[str, Any], space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Return the hyperparameters that the space varies, as values of its distributions."""
    return {name: encode(values[name], dimension) for name, dimension in space.items()}


def decode_all(values: Mapping[str, Any], space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Return the values of the distributions as the recipe has them."""
    return {name: decode(values[name], dimension) for name, dimension in space.items()}
