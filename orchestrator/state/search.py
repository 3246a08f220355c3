"""Values of a search: placement, forecast, consolidation, and `Search`, which holds them all. Reads and writes no file.

Types and constraints of the fields hold for what `orchestrator.state.search_file` reads; they are not checked in code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    WrapValidator,
)

from orchestrator.state.deadline import Deadline, Moment
from orchestrator.state.rungs import rung_tokens
from search_spaces.schema import Recipe
from trials.config import TrialConfig
from trials.model.architecture import ModelShape, model_shape
from trials.schedule import Epoch, full_tokens


@dataclass(frozen=True)
class Placement:
    """Number of workers, and of concurrent trials in all of them."""

    engines: NonNegativeInt
    """Workers: processes, or groups of processes that train each trial together."""
    slots: NonNegativeInt = 0
    most_ranks: PositiveInt = field(default=1, compare=False)
    """Workers that fit on every machine that has any: so many ranks could train one trial together."""

    @property
    def slots_per_worker(self) -> int:
        """Slots of the worker with most slots; there must be a worker."""
        return math.ceil(self.slots / self.engines)


@dataclass(frozen=True)
class Consolidation:
    """Change near the end of a search: from then on several processes train each trial together, before it one did."""

    ranks: int
    speedup: float
    """Expected speedup of a trial, before it is measured."""
    finalist: str
    """Id of the trial that is to be completed by the change."""
    reason: str
    at: str
    """Time of the decision, ISO 8601, UTC."""


@dataclass(frozen=True)
class SearchForecast:
    """Forecast of the state at the end of the search. None: not known yet, unless a field says otherwise."""

    trials: int | None
    """Configurations that are tried, starting points included."""
    full_trials: int | None
    """Configurations that are trained to full length."""
    full_tokens: int
    """Tokens of a full trial in this search."""
    tokens: int | None
    """Tokens trained by all trials together."""
    seconds_per_token: float | None
    """Speed of one trial in its slot, evaluations included."""
    source: str | None
    """Source of the speed, in words."""
    made: Moment
    """Time of the forecast."""
    slots: int
    """Concurrent trials."""
    reserve_seconds: float
    ends: Moment
    """Most likely time at which the export is complete."""
    disk_gib: float | None
    """Upper limit of the run folder's size."""
    energy_kwh: float | None
    """None without GPUs."""
    cost: float | None
    """Cost in the currency of `search.price_per_gpu_hour`; None without a price or GPUs."""


def _with_counted_rows(data: Mapping[str, Any]) -> Mapping[str, Any]:
    train = data.get("train", {"rows": 1, "tokens": 1})
    counts = [train.get(name) if isinstance(train, dict) else None for name in ("rows", "tokens")]
    if not all(isinstance(count, int) and count > 0 for count in counts):
        raise ValueError("train must have positive numbers of rows and tokens")
    return data


def _if_readable(content: Any, validate: Callable[[Any], SearchForecast | None]) -> SearchForecast | None:
    """Return a forecast; None if it is damaged or of another version: the report does without it."""
    try:
        return validate(content)
    except ValidationError:
        return None


@dataclass(frozen=True)
class Search:
    """A search: recipe, deadline, data, placement, and what was measured so far. search.json holds it."""

    recipe: Recipe
    sources: Mapping[str, str]
    deadline: Deadline
    gpus_per_trial: NonNegativeInt
    """GPUs of one trial; 0: it is trained on the CPU."""
    full_tokens: PositiveInt
    """Unpadded tokens of the longest full trial in the space, with the length that trials have in this search."""
    data: Annotated[Mapping[str, Any], AfterValidator(_with_counted_rows)] = field(default_factory=dict)
    """Fingerprint of the tokenised rows, and for every split its `trials.data.split.Counts`."""
    shortened: PositiveFloat | None = None
    """Length of full trials as a share of the recipe's length, so that enough of them fit; None: not measured yet."""
    final_seconds: NonNegativeFloat = 0.0
    """Seconds at the end of training that are kept for final trials; 0 until the speed is measured."""
    alone_seconds_per_token: PositiveFloat | None = None
    """Speed of the probe, alone on its worker, with the evaluations of a trial in this search; None: not measured."""
    slots_of_use: PositiveInt | None = None
    """Most trials beside each other on a worker that get clearly more done than fewer; None: not measured."""
    prediction: Annotated[SearchForecast | None, WrapValidator(_if_readable)] = None
    """Forecast at the measured speed; None: the speed is not measured yet, or the forecast is of another version."""
    placement: Placement | None = None
    """Placement on the machines that Ray has; None: not known yet."""
    ranks: PositiveInt = 1
    """Processes that train one trial together: one for each of its GPUs, or as many on the CPU without GPUs."""
    regrouped: Consolidation | None = None
    """Change near the end to all GPUs of a machine for one trial at a time; None: not changed."""
    opening_seconds: FiniteFloat | None = None
    """Seconds from dispatching the base model to the end of its evaluation, with loading; None: not measured yet."""
    base: ModelShape | None = None
    """Shape of the base model; None: its config was not read yet."""

    @property
    def shape(self) -> ModelShape:
        """Shape of the base model, read if not stored. Raises `ModelError` if its config can't be read."""
        return self.base or model_shape(self.recipe.model.name, self.recipe.model.revision)

    @property
    def rungs(self) -> list[int]:
        """Tokens seen at which trials are compared in the report and scored, ascending."""
        settings = self.recipe.search
        return rung_tokens(self.full_tokens, settings.reduction_factor, settings.rungs)

    @property
    def epoch(self) -> Epoch | None:
        """One pass over the training rows; None in a run folder of a version that didn't count rows."""
        train = self.data.get("train")
        return None if train is None else Epoch(train["rows"], train["tokens"])

    def tokens_of(self, config: TrialConfig) -> int:
        """Return the tokens of a whole trial with this configuration; without counted rows, those of a full trial."""
        epoch = self.epoch
        return self.full_tokens if epoch is None else full_tokens(config.hyperparameters, epoch)
