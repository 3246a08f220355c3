"""Text of the plan: the search in words, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from orchestrator.planning.forecast import forecast_search
from orchestrator.planning.placement import plan_placement, trl_reason
from orchestrator.planning.plan_lines import forecast_lines
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.state.search import Search
from search_spaces.durations import format_duration
from search_spaces.layers import flatten
from search_spaces.schema import Choices, Recipe, SearchSettings
from trials.config import LENGTHS
from trials.data.dataset import TrialData
from trials.data.split import Counts
from trials.schedule import Epoch, full_tokens
from trials.system.gpus import gpu_count


@dataclass(frozen=True)
class DataSizes:
    """Rows and tokens of a search's data, and the tokens of a full trial."""

    epoch_tokens: int
    full_tokens: int
    data: Mapping[str, Any]
    """Fingerprint of the tokenised rows, and for every split its `trials.data.split.Counts`."""

    @staticmethod
    def of(recipe: Recipe, data: TrialData) -> DataSizes:
        """Return the sizes, counted on tokenised rows."""
        splits = {"train": data.train, "eval": data.eval, "test": data.test}
        counts = {name: asdict(split.counts) for name, split in splits.items() if split is not None}
        return DataSizes(
            data={"fingerprint": data.fingerprint, **counts},
            epoch_tokens=data.train.tokens,
            full_tokens=_longest_trial(recipe, data.train.epoch),
        )


def _longest_trial(recipe: Recipe, epoch: Epoch) -> int:
    """Return the tokens of the longest full trial in the space; lengths differ if the search varies them."""
    longest = full_tokens(recipe.hyperparameters, epoch)
    for name in LENGTHS:
        dimension = recipe.space.get(name)
        if dimension is not None:
            most: Any = max(dimension.choices) if isinstance(dimension, Choices) else dimension.high  # type: ignore[type-var]
            longest = max(longest, full_tokens(recipe.hyperparameters_with({name: most}), epoch))
    return longest


def describe(
    search: Search, sizes: DataSizes, throughput: ThroughputModel | None = None, now: datetime | None = None
) -> str:
    """Return the plan as text: time, data, forecast, starting points, space, settings and their sources.

    For a resumed search, `throughput` is its measured speed and `now` the present time. None: the forecast is made for
    the start of the search, with a speed that is known beforehand.
    """
    deadline = search.deadline
    epoch = Epoch(sizes.data["train"]["rows"], sizes.epoch_tokens)
    settings = flatten(search.recipe.model_dump(exclude={"name", "description", "space"}))
    total = format_duration((deadline.ends - deadline.started).total_seconds())
    lines = [
        f"recipe {search.recipe.name}: {search.recipe.description}",
        f"time: {total}, until {deadline.ends:%Y-%m-%d %H:%M:%S} UTC{deadline.shown_here}",
        f"base model: {search.recipe.model.name} ({search.recipe.model.quantization})",
        *data_lines(sizes.data),
        f"full trial: {sizes.full_tokens:,} tokens ({sizes.full_tokens / sizes.epoch_tokens:.2f} epochs)",
        *forecast_lines(search, sizes.full_tokens, epoch, forecast_search(search, throughput, now or deadline.started)),
        f"first the base model, then {len(search.recipe.start)} starting point(s): "
        f"{', '.join(search.recipe.start) or 'none'}; {_what_then(search.recipe.search)}",
        f"GPUs per trial: {search.gpus_per_trial}{_together(search)}",
        placement_line(search),
        "space:",
        *(f"  {name}: {_dimension(dimension)}" for name, dimension in search.recipe.space.items()),
        "settings, and where they came from:",
        *(f"  {key} = {value!r}  ({search.sources.get(key, 'default')})" for key, value in settings.items()),
    ]
    return "\n".join(lines)


def _what_then(settings: SearchSettings) -> str:
    then = f"then what {settings.sampler} proposes; {settings.scheduler} decides at evaluations what goes on"
    if settings.sampler == settings.scheduler == "freeze_thaw":
        then = "then what looks most promising by all learning curves so far"
    if not settings.final_share:
        return then
    return (
        f"{then}; at the end, in up to {settings.final_share:.0%} of the time, the best configuration is trained anew "
        "for as long as its loss falls"
    )


def _together(search: Search) -> str:
    if search.ranks == 1:
        return ""
    if search.gpus_per_trial:
        return ", which train it together (NCCL)"
    return f"; {search.ranks} processes on the CPU stand in for them (gloo)"


def data_lines(data: Mapping[str, Any]) -> list[str]:
    """Return a line per split about its rows, and lines about unused columns. `data` is as in search.json.

    A split whose entry is damaged has no line.
    """
    splits = {name: counts for name in ("train", "eval", "test") if (counts := _counts(data.get(name))) is not None}
    unread = {name: counts.unread_in_words() for name, counts in splits.items() if counts.unread}
    # Splits usually have the same columns, so equal texts are merged into one line.
    where = {said: " and ".join(name for name in unread if unread[name] == said) for said in unread.values()}
    return [
        *(f"{name} rows: {counts.in_words()}" for name, counts in splits.items()),
        *(f"columns not used, in {names}: {said}" for said, names in where.items()),
    ]


def _counts(described: Any) -> Counts | None:
    try:
        return None if described is None else Counts(**described)
    except (TypeError, ValueError):
        return None


def placement_line(search: Search) -> str:
    """Return the line about the backend, the reason for it, and the concurrent trials on this machine.

    A Ray cluster may run more trials.
    """
    placement = plan_placement(search, gpus=gpu_count(), cores=[os.cpu_count() or 1])
    reason = trl_reason(search)
    engine = "shared (it can run every configuration of this search)" if reason is None else f"TRL ({reason})"
    if search.ranks > 1 and placement.slots:
        return f"engine: {engine}; trials at once: {placement.slots}, each in {search.ranks} processes"
    if not placement.slots:
        return f"engine: {engine}; trials at once: as many as the Ray cluster has GPUs for; this machine has none"
    if reason is None:
        return f"engine: {engine}; trials at once: {placement.slots}, on {placement.engines} base model(s)"
    return f"engine: {engine}; trials at once: {placement.slots}, each in a process of its own"


def _dimension(dimension: Any) -> str:
    if isinstance(dimension, Choices):
        return "one of " + ", ".join(map(str, dimension.choices))
    return f"{dimension.low:g} to {dimension.high:g}{', logarithmic' if dimension.log else ''}"
