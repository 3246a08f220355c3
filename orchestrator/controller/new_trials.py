"""Configurations of a search's new trials, and their ids; both continue from the trials' folders."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.sampling.distributions import decode_all, encode_all
from search_spaces.schema import Recipe
from trials.records.trial_dir import Origin, TrialRecord


class Proposals(Protocol):
    """What proposes configurations, as values of the study's distributions."""

    def begin(self, number: int, values: Mapping[str, Any]) -> None:
        """Record the configuration of the trial of this number, which nobody proposed."""

    def propose(self, number: int) -> Mapping[str, Any] | None:
        """Return the configuration of the trial of this number; None: it is not ready yet."""


@dataclass(frozen=True)
class NewTrial:
    """Configuration to try next: trial id, hyperparameters, and the starting point's name or None."""

    trial_id: str
    values: Mapping[str, Any]
    name: str | None


class NewTrials:
    """Gives out new configurations: starting points first, then proposals, up to the recipe's number of trials.

    `records` are the usable trials on disk. `lost` are the ids of trials that were set aside: no new trial gets one,
    they do not count as trials, and starting points among them are given out again.
    """

    def __init__(self, recipe: Recipe, records: Sequence[TrialRecord], lost: Collection[str] = ()) -> None:
        self._recipe = recipe
        begun = [record for record in records if record.origin is not Origin.BASE]
        self._last = max((int(each) for each in (*lost, *(record.id for record in begun))), default=0)
        self._count = sum(record.origin is not Origin.FINAL for record in begun)
        names = {record.name for record in begun if record.origin is Origin.START}
        self._starts = deque(name for name in recipe.start if name not in names)

    @property
    def has_more(self) -> bool:
        """Whether fewer configurations were given out than the recipe's number of trials; it may have none."""
        limit = self._recipe.search.trials
        return limit is None or self._count < limit

    def next_id(self) -> str:
        """Return the id of a trial that has its configuration from elsewhere; it doesn't count as one of the trials."""
        self._last += 1
        return f"{self._last:04d}"

    def next(self, proposals: Proposals) -> NewTrial | None:
        """Return the next configuration; its trial's folder has to be made before another controller is.

        None: it is not ready yet, and should be asked for again.
        """
        number, space = self._last + 1, self._recipe.space
        name = self._starts[0] if self._starts else None
        if name is not None:
            values = self._recipe.start_values(name)
            proposals.begin(number, encode_all(values, space))
            self._starts.popleft()
        else:
            proposed = proposals.propose(number)
            if proposed is None:
                return None
            values = decode_all(proposed, space)
        self._last = number
        self._count += 1
        return NewTrial(f"{number:04d}", values, name)
