"""Configurations that a search has tried, their outcomes, and those that are left."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from orchestrator.surrogate.encoding import Array, SpaceEncoder
from orchestrator.surrogate.trial_view import TrialView
from trials.state import TrialState

_MODELS = 4
_MOST = 200
"""Number of configurations that each query returns at most: the newest."""
_MOST_COUNTED = 2000


class TrialHistory:
    """History of all trials of a search.

    `only`: the configurations that may be tried, each once; None: all of the space. A space with at most
    `_MOST_COUNTED` configurations is treated as such a list. No configuration is tried twice while there are others:
    a repetition with another seed would differ by chance only, which says nothing about the configuration.
    """

    def __init__(
        self, coordinates: SpaceEncoder, space: Mapping[str, BaseDistribution], only: Sequence[Mapping[str, Any]] | None
    ) -> None:
        self._coordinates = coordinates
        listed = _all_of(space) if only is None else only
        self._left: dict[bytes, Array] | None = None
        if listed is not None:
            draws = np.stack([coordinates.to_unit(values) for values in listed])
            self._left = dict(zip(coordinates.keys(draws), draws, strict=True))
        self._x: dict[str, Array] = {}
        self._keys: set[bytes] = set()
        self._pending: dict[str, None] = {}
        self._diverged: dict[str, None] = {}
        self._too_large: dict[str, None] = {}
        self._trained: dict[str, None] = {}
        self._best: list[tuple[float, str]] = []
        self._views: dict[str, TrialView] = {}
        self._pace: dict[str, float] = {}

    def observe(self, view: TrialView) -> None:
        """Record a new trial, or what has changed of one."""
        name = view.trial_id
        if name not in self._x:
            draw = self._coordinates.to_unit(view.values)
            self._x[name] = self._coordinates.encode_many(draw[None])[0]
            key = self._coordinates.keys(draw[None])[0]
            self._keys.add(key)
            if self._left is not None:
                self._left.pop(key, None)
        self._pace[name] = view.pace
        _put(self._pending, name, view.state is TrialState.RUNNING and not view.points)
        _put(self._diverged, name, view.state is TrialState.DIVERGED)
        _put(self._too_large, name, view.state is TrialState.OUT_OF_MEMORY)
        _put(self._trained, name, bool(view.points) and not view.state.is_infeasible)
        if view.points:
            self._rank(view)

    def _rank(self, view: TrialView) -> None:
        name = view.trial_id
        self._best = [pair for pair in self._best if pair[1] != name]
        bisect.insort(self._best, (view.points[-1][1], name))
        self._views[name] = view
        for _, dropped in self._best[_MODELS:]:
            del self._views[dropped]
        del self._best[_MODELS:]

    @property
    def best(self) -> list[TrialView]:
        """Trials with the best losses, best first; the proposer also draws candidates around them."""
        return [self._views[name] for _, name in self._best]

    @property
    def has_untried(self) -> bool:
        """Whether a configuration is left to try."""
        return self._left is None or bool(self._left)

    def untried(self, draws: Array) -> Array:
        """Return draws that may be tried: the rest of the list if there is one, else the new ones among `draws`.

        If none of `draws` is new, all of them are returned.
        """
        if self._left is not None:
            return np.stack(list(self._left.values())) if self._left else draws[:0]
        new = self.new(draws)
        return new if len(new) else draws

    def new(self, draws: Array) -> Array:
        """Return those of `draws` that have not been tried and may be, each once."""
        first = {key: index for index, key in reversed(list(enumerate(self._coordinates.keys(draws))))}
        allowed = {key: index for key, index in first.items() if self._left is None or key in self._left}
        return np.asarray(draws[sorted(index for key, index in allowed.items() if key not in self._keys)])

    def pending(self) -> Array:
        """Return the encoded configurations of running trials without a loss, [count, dimensions]."""
        return self._rows(self._pending)

    def outcomes(self) -> tuple[Array, Array, Array]:
        """Return the encoded configurations that diverged, that ran out of memory, and that have a loss."""
        return self._rows(self._diverged), self._rows(self._too_large), self._rows(self._trained)

    def measured(self) -> tuple[Array, list[float]]:
        """Return the encoded configurations of trials that have a loss, and their pace."""
        names = self._newest(self._trained)
        return self._rows(self._trained), [self._pace[name] for name in names]

    def distances(self, draws: Array) -> Array:
        """Return the distance of each draw to the nearest configuration that was tried, [count]."""
        gaps = self._coordinates.encode_many(draws)[:, None] - self._rows(self._x)[None]
        return np.asarray(np.linalg.norm(gaps, axis=2).min(1))

    def _rows(self, names: dict[str, Any]) -> Array:
        newest = self._newest(names)
        return np.stack([self._x[name] for name in newest]) if newest else np.zeros((0, self._coordinates.count))

    def _newest(self, names: dict[str, Any]) -> list[str]:
        return list(itertools.islice(reversed(names), _MOST))[::-1]


def _all_of(space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]] | None:
    """Return all configurations of a space of choices and integers; None: it has others, or too many."""
    choices = [_choices(each) for each in space.values()]
    listed = [each for each in choices if each is not None]
    if len(listed) < len(choices) or math.prod(map(len, listed)) > _MOST_COUNTED:
        return None
    return [dict(zip(space, each, strict=True)) for each in itertools.product(*listed)]


def _choices(dimension: BaseDistribution) -> Sequence[Any] | None:
    if isinstance(dimension, CategoricalDistribution):
        return dimension.choices
    return range(dimension.low, dimension.high + 1) if isinstance(dimension, IntDistribution) else None


def _put(names: dict[str, None], name: str, belongs: bool) -> None:
    if belongs:
        names[name] = None
    else:
        names.pop(name, None)
