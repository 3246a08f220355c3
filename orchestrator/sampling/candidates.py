"""Proposes new configurations.

The first few are spread over the space. Later ones are the best of many candidates, drawn from all of the space and
around the best configurations so far. Candidates are compared by expected improvement at full length, per unit of time,
times a power of the probability that they can be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from orchestrator.surrogate.encoding import Array
from orchestrator.surrogate.model import Surrogate

Similarity = Callable[[Array, Array], Array]
"""Maps encoded configurations x and others to their similarity, [len(x), len(others)], 0 to 1."""
_CANDIDATES, _MANY_CANDIDATES = 300, 1500
_SPREAD_AMONG = 10
_WORTHLESS = -1e300
"""Finite, so that it goes before a candidate that was returned already."""
_CAUTION = 10
"""Exponent of the probability that a configuration can be trained.

A failure takes little time but says nothing about losses: a configuration that fails one time in fifteen counts half.
"""


class CandidatePool:
    """Candidates that are taken in order of acquisition value; those that resemble a taken one lose value.

    `draws` are points of the unit cube [count, dimensions], `x` the same encoded, `values` their acquisition values,
    which are logarithms.
    """

    def __init__(self, draws: Array, x: Array, values: Array, similarity: Similarity) -> None:
        self._draws, self._x, self._values, self._similarity = draws, x, values, similarity
        self._is_popped = np.zeros(len(draws), dtype=bool)

    def penalise_similar(self, others: Array) -> None:
        """Lower the value of candidates that resemble `others`.

        `others` are encoded configurations that are already running; a near-duplicate would add little information.
        """
        if len(others):
            with np.errstate(divide="ignore"):
                self._values = self._values + np.log1p(-self._similarity(self._x, others).max(1))

    def pop_best(self) -> Array:
        """Return the draw of the highest value, and penalise those that resemble it."""
        best = int(np.argmax(np.where(self._is_popped, -np.inf, np.maximum(self._values, _WORTHLESS))))
        self.penalise_similar(self._x[best : best + 1])
        self._is_popped[best] = True
        return np.asarray(self._draws[best])

    @property
    def popped(self) -> int:
        """Number of candidates that were returned."""
        return int(self._is_popped.sum())

    @property
    def is_exhausted(self) -> bool:
        """Whether every candidate was returned."""
        return bool(self._is_popped.all())


class Proposer:
    """Proposes configurations that have not been tried; with many slots, from a pool that is made ahead of time."""

    def __init__(self, surrogate: Surrogate, random: np.random.Generator) -> None:
        self._surrogate = surrogate
        self._random = random
        self._pool: CandidatePool | None = None
        self._fits = 0
        """Value of `Surrogate.fits` when the pool was made."""

    def propose(self, seed: int | Sequence[int]) -> dict[str, Any]:
        """Return the hyperparameters of the next new configuration; the same for the same seed and history."""
        random, encoder = np.random.default_rng(seed), self._surrogate.encoder
        if self._surrogate.knows_little:
            return encoder.decode(self._spread(random))
        if not self._surrogate.has_many_slots:
            self._surrogate.refit()
            return encoder.decode(self._candidates(random, _CANDIDATES).pop_best())
        self._drop_stale_pool()
        if self._pool is None or self._pool.is_exhausted:
            self._make_pool(random)
        assert self._pool is not None
        return encoder.decode(self._pool.pop_best())

    def prepare(self) -> None:
        """Make a pool if there are many slots, so that proposals need not wait for it."""
        self._drop_stale_pool()
        if self._pool is not None and self._pool.popped > _MANY_CANDIDATES // 10:
            self._pool = None
        if self._pool is None and self._surrogate.has_many_slots and self._surrogate.best_loss is not None:
            self._make_pool(self._random)

    def _drop_stale_pool(self) -> None:
        if self._fits != self._surrogate.fits:
            self._pool = None

    def _make_pool(self, random: np.random.Generator) -> None:
        self._pool, self._fits = self._candidates(random, _MANY_CANDIDATES), self._surrogate.fits

    def _spread(self, random: np.random.Generator) -> Array:
        """Return one of the first configurations as a draw: of a few, the farthest from all that were tried.

        A sequence of `scipy.stats.qmc` would not know the starting points, and needs a mapping for lists of choices.
        """
        history = self._surrogate.history
        draws = history.untried(self._surrogate.encoder.sample(_CANDIDATES, random))
        if not self._surrogate.views:
            return np.asarray(draws[0])
        few = random.permutation(draws)[:_SPREAD_AMONG]
        return np.asarray(few[int(np.argmax(history.distances(few)))])

    def _candidates(self, random: np.random.Generator, count: int) -> CandidatePool:
        """Return candidates from all of the space and around the best, those like running ones penalised."""
        known = self._surrogate
        near = [known.encoder.perturb(each.values, count // 10, random) for each in known.history.best]
        draws = known.history.untried(np.concatenate([known.encoder.sample(count, random), *near]))
        x = known.encoder.encode_many(draws)
        ends = known.ends(draws)
        with np.errstate(divide="ignore"):  # what can't be trained is worth nothing
            chance = _CAUTION * np.log(known.feasibility.predict(x))
        values = known.log_improvement(x, ends[:, None]) - np.log(ends * known.pace.predict(x)) + chance
        pool = CandidatePool(draws, x, values, known.curve_model.similarity)
        pool.penalise_similar(known.history.pending())
        return pool
